"""All weights of a plain transformers model, with the adapters merged into them: what a merged folder holds."""

from collections.abc import Mapping
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from lora_lightning.compat.peft import TrainableTokensWrapper
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, adapted_parameter_name, pretrained_weight
from lora_lightning.lora.merging import as_stored, merged_bias, merged_weight
from lora_lightning.lora.parameter_names import plain_name
from lora_lightning.lora.quantized import dequantized_weight, quantized_bits


def quantized_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that bitsandbytes keeps in 4 or 8 bits, with and without adapters.

    Args:
        model: A transformers model, adapters in place.

    Returns:
        Layer by dotted name in the plain model.
    """
    return {
        cast("str", plain_name(name)): module
        for name, module in model.named_modules()
        if "weight" in dict(module.named_parameters(recurse=False)) and quantized_bits(module)
    }


@torch.no_grad()
def merged_state(model: nn.Module, originals: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights and buffers of the plain model, adapters merged; the adapted model is unchanged.

    Merged weights and those of quantized layers are new tensors in float32; all others are shared with the model.
    Weights that were tied are two entries, which differ if only one of them has an adapter.

    Args:
        model: A transformers model, adapters in place (`PeftModel.get_base_model`).
        originals: The weights that a quantized base was made from, (out_features, in_features), any floating dtype, by
            layer, for every quantized layer; `None` for the dequantized ones.

    Returns:
        Tensor by name in the plain model, in the layout in which the layer stores it; of a quantized layer
        (out_features, in_features).

    Raises:
        ConfigurationError: If a layer cannot be merged, or its original weight is missing.
    """
    state: dict[str, Tensor] = {}
    every = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in every:
        if (plain := plain_name(name)) is not None:
            state[plain] = tensor.detach()
    for name, module in quantized_modules(model).items():
        if originals is not None and name not in originals:
            msg = f"{name}: its original weight is missing; give the model that was quantized."
            raise ConfigurationError(msg)
        weight = dequantized_weight(module) if originals is None else originals[name].to(state[f"{name}.weight"].device)
        state[f"{name}.weight"] = weight.float()
    for name, layer in adapted_layers(model).items():
        key = adapted_parameter_name(name, layer)
        is_quantized = quantized_bits(layer.get_base_layer()) is not None
        base = state[key] if is_quantized and originals is not None else pretrained_weight(layer)
        state[key] = as_stored(layer, merged_weight(name, layer, base)).contiguous()
        if (bias := merged_bias(name, layer)) is not getattr(layer.get_base_layer(), "bias", None):
            state[f"{name}.bias"] = cast("Tensor", bias)
    for name, module in model.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            state[f"{plain_name(name)}.weight"] = cast("Tensor", module.weight).detach()
    return state
