"""A small random model of an architecture, to try what the architecture does before any weights load."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lora_lightning.backbones.loading import build_without_storage
from lora_lightning.backbones.remote_code import runs_remote_code
from lora_lightning.lora.sharding import transformer_layers

MOST_PARAMETERS = 2**28  # 1 GiB of float32
WINDOW = 4  # tokens; shorter than the documents that are tried
VOCABULARY = 64
MLP_WIDTH = 16
EXPERTS = 16
WINDOW_NAMES = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size", "local_window")
MLP_NAMES = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")


EXPERT_NAMES = ("num_experts", "num_local_experts", "n_routed_experts")


def build_miniature(auto_class: Any, config: PretrainedConfig) -> PreTrainedModel | None:
    """Builds a random model with one layer of every kind, a small vocabulary and short attention windows.

    Its weights are large enough for every input to matter: the effect of a token on another one is far above the
    rounding of float32, as it is in a pretrained model and is not with transformers' initial weights.

    Args:
        auto_class: One of transformers' `AutoModelFor...`.
        config: The architecture; not changed.

    Returns:
        The model in evaluation mode, in float32 on the CPU, the same for every call; `None` if the architecture is
        too large or its configuration cannot be made smaller.
    """
    for candidate in _smaller_configs(auto_class, config):
        try:
            model = _build(auto_class, candidate)
        except Exception:  # noqa: BLE001, S112  # a configuration that does not fit itself makes a model raise anything
            continue
        if model is not None:
            return model
    return None


def _smaller_configs(auto_class: Any, config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The smallest first; some architectures need all layers, or an MLP of a certain width, or all experts."""
    needed = _layers_needed(build_without_storage(auto_class, config))
    for layers, narrow in ((needed, True), (needed, False), (None, False)):
        smaller = deepcopy(config)
        if hasattr(smaller, "quantization_config"):
            del smaller.quantization_config
        for part in {id(part): part for part in (smaller, smaller.get_text_config())}.values():
            if layers is not None:
                _cut_layers(part, layers)
            _reduce(part, WINDOW_NAMES, WINDOW)
            _reduce(part, ("vocab_size", "vocab_size_per_layer_input"), VOCABULARY)
            if narrow:
                _reduce(part, MLP_NAMES, MLP_WIDTH)
                _reduce(part, EXPERT_NAMES, EXPERTS)
            _reset_special_tokens(part)
        yield smaller


def _reset_special_tokens(config: PretrainedConfig) -> None:
    """They may lie beyond the smaller vocabulary; an architecture may insist on having one."""
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        try:
            setattr(config, name, None)
        except StrictDataclassFieldValidationError:
            setattr(config, name, 0)


def _layers_needed(model: PreTrainedModel) -> int:
    """How many of the first layers have one of every kind."""
    kinds = [_kind(layer) for layer in transformer_layers(model)]
    return 1 + max((kinds.index(kind) for kind in kinds), default=0)


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    words = ("layer_type", "attention_type", "is_sliding", "sliding_window")
    return tuple((type(module), *(getattr(module, word, None) for word in words)) for module in layer.modules())


def _cut_layers(config: PretrainedConfig, layers: int) -> None:
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or layers >= depth:
        return
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers


def _reduce(config: PretrainedConfig, names: Sequence[str], most: int) -> None:
    for name in names:
        if isinstance(value := getattr(config, name, None), int):
            setattr(config, name, min(value, most))


def _build(auto_class: Any, config: PretrainedConfig) -> PreTrainedModel | None:
    outline = build_without_storage(auto_class, config)
    if sum(parameter.numel() for parameter in outline.parameters()) > MOST_PARAMETERS:
        return None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model: PreTrainedModel = auto_class.from_config(
            config, dtype=torch.float32, trust_remote_code=runs_remote_code(str(config.name_or_path))
        )
        for parameter in model.parameters():
            _enlarge(parameter)
        model = model.eval()
        with torch.no_grad():
            model(input_ids=torch.arange(3)[None], use_cache=False)
    return model


@torch.no_grad()
def _enlarge(weight: Tensor) -> None:
    """Gives a weight matrix the size with which a layer's output is about as large as its input."""
    if weight.dim() < 2:  # noqa: PLR2004  # of norms and biases
        return
    size, wanted = float(weight.square().mean().sqrt()), weight.shape[-1] ** -0.5
    if size == 0:
        weight.normal_(std=wanted)
    else:
        weight.mul_(max(1.0, wanted / size))
