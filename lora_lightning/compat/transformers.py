"""Private and undocumented names of transformers 5."""

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_masks_for_generate, sdpa_mask
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

__all__ = [
    "Conv1D",  # GPT-2's linear layer with a transposed weight; nothing public tells it apart
    "attention_implementation",
    "create_masks_for_generate",  # the masks of a model's layers, as its own forward makes them
    "forget_quantization",
    "forget_renamed_weights",
    "ignored_weights",
    "initialize_again",
    "is_masked_language_model",
    "quantization_config",
    "sdpa_attention_forward",  # the attention that ours falls back to
    "sdpa_mask",  # the mask in the form that this attention takes
    "tied_weights",
]


def attention_implementation(model: PreTrainedModel) -> str | None:
    """Returns which attention a model uses, for example "sdpa"; transformers has a public setter but no reader.

    Args:
        model: Any.
    """
    return cast("str | None", model.config._attn_implementation)


def is_masked_language_model(config: PretrainedConfig) -> bool:
    """Returns whether an architecture fills in masked tokens, so that its tokens attend in both directions.

    `AutoModelForCausalLM` would load it all the same.

    Args:
        config: The architecture.
    """
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def forget_renamed_weights(model: PreTrainedModel) -> None:
    """Makes `save_pretrained` write a model's own names of weights, although `key_mapping` renamed them on loading.

    It would write the old names otherwise, which then fit no model class.

    Args:
        model: Loaded with `key_mapping`; changed in place.
    """
    vars(model).pop("_weight_conversions", None)


def forget_quantization(model: PreTrainedModel) -> None:
    """Makes transformers treat a model that was loaded from a GGUF file as the float32 model that it is by then.

    Args:
        model: Changed in place.
    """
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config


def quantization_config(model: nn.Module) -> BitsAndBytesConfig | None:
    """Returns how bitsandbytes quantized a model when it was loaded, `None` if it did not.

    `model.config.quantization_config` would go into `config.json` as well, where it would describe the weights.

    Args:
        model: A transformers model.
    """
    config: Any = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    return config if isinstance(config, BitsAndBytesConfig) else None


def ignored_weights(model: PreTrainedModel) -> Callable[[str], bool]:
    """Returns whether transformers leaves a tensor of a checkpoint out on purpose, by the tensor's name.

    Such as DeepSeek-V3's layer for predicting two tokens ahead. The loading info has left these out already for most
    models, but some patterns are at the language model's class only and hold for the same weights under another head.

    Args:
        model: Any.
    """
    language_model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    patterns = [
        pattern
        for owner in (model, language_model)
        for pattern in getattr(owner, "_keys_to_ignore_on_load_unexpected", None) or ()
    ]
    return lambda name: any(re.search(pattern, name) for pattern in patterns)


@torch.no_grad()
def initialize_again(model: PreTrainedModel, layer: nn.Module) -> None:
    """Draws the weights of a layer as `from_pretrained` draws those that a checkpoint lacks.

    Args:
        model: Whose architecture says how.
        layer: In the model; changed in place. A layer on the meta device has nothing to draw.
    """
    for owner in (layer, *layer.parameters()):
        vars(owner).pop("_is_hf_initialized", None)  # transformers protects loaded weights by this mark
    model._init_weights(layer)


def tied_weights(model: PreTrainedModel) -> dict[str, str]:
    """Returns which of a model's weights share their storage with another, by name.

    Args:
        model: Any, also on the meta device.

    Returns:
        The name of the weight that is saved, by the name of the one that is not; empty if its configuration ties none.
    """
    return dict(model.all_tied_weights_keys or {})
