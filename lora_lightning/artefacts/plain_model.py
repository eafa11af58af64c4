"""Builds the plain transformers model that a merged folder holds, and writes it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.artefacts.results import DtypeName
from lora_lightning.backbones.export import export_model
from lora_lightning.compat.transformers import Conv1D, quantization_config, tied_weights
from lora_lightning.errors import VerificationError
from lora_lightning.lora.merged_state import merged_state, quantized_modules
from lora_lightning.lora.quantized import keep_4bit_weights_in_order

DTYPES: dict[DtypeName, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def build_plain_model(
    adapted: PreTrainedModel, dtype: DtypeName, originals: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """Builds the merged model without anything of PEFT or of quantization, to be saved and loaded again.

    Args:
        adapted: The transformers model, adapters in place; unchanged.
        dtype: Of all floating weights.
        originals: As in `merged_state`.

    Returns:
        The model. Weights that were tied stay tied if they are still equal; otherwise its configuration says that they
        are not tied any more. Buffers that are not saved are on the meta device.

    Raises:
        ConfigurationError: If a layer cannot be merged.
        VerificationError: If the adapter model lacks a weight of the plain model.
    """
    state = merged_state(adapted, originals)
    config = copy.deepcopy(adapted.config)
    config.dtype = DTYPES[dtype]
    plain = _without_storage(adapted, config)
    if any(not torch.equal(state[name], state[other]) for name, other in tied_weights(plain).items()):
        config.tie_word_embeddings = False
        plain = _without_storage(adapted, config)
    for name in quantized_modules(adapted):
        if isinstance(plain.get_submodule(name), Conv1D):  # bitsandbytes turns it into a linear layer
            state[f"{name}.weight"] = state[f"{name}.weight"].T
    names = plain.state_dict().keys()
    if missing := [name for name in names if name not in state]:
        msg = f"the adapter model has no weight {missing[0]}, so the merged model would be incomplete."
        raise VerificationError(msg)
    plain.load_state_dict({name: _as_dtype(state[name], DTYPES[dtype]) for name in names}, assign=True)
    plain.tie_weights()
    if adapted.can_generate():
        plain.generation_config = copy.deepcopy(adapted.generation_config)
    plain.eval()
    return plain


def _without_storage(adapted: PreTrainedModel, config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return type(adapted)(config)


def _as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    files: Mapping[str, Any],
) -> None:
    """Writes a plain transformers folder.

    Args:
        model: From `build_plain_model`, or one that transformers quantized.
        tokenizer: Written beside it; `None` for none.
        folder: Replaced if it exists.
        files: Values to write as JSON, by file name.

    Raises:
        OSError: If the disk is full.
    """
    export_model(model, tokenizer, folder, files)


def load_merged(
    folder: Path, auto_class: Any, device: torch.device, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Loads a merged folder as any user would.

    Args:
        folder: Written by `write_model`.
        auto_class: One of transformers' `AutoModelFor...`.
        device: Where to.
        quantization: Quantizes the weights while they are loaded; `None` for what the folder says.

    Returns:
        The model in evaluation mode.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model: PreTrainedModel = auto_class.from_pretrained(str(folder), **options)
    if not getattr(model, "is_quantized", False):  # which is there already
        cast("nn.Module", model).to(device)
    keep_4bit_weights_in_order(model)
    model.eval()
    return model


def quantization_of(model: PreTrainedModel) -> BitsAndBytesConfig:
    """How the adapter's base is quantized, to quantize the merged model in the same way."""
    return cast("BitsAndBytesConfig", copy.deepcopy(quantization_config(model)))
