"""bitsandbytes' 4- and 8-bit layers: size, dequantizing, requantizing. `backbones.quantization` creates them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lightning.compat import bitsandbytes, peft
from lora_lightning.compat.torch import hide_parameter, parameter_of, show_parameter
from lora_lightning.errors import BackboneError


def quantized_bits(layer: nn.Module) -> int | None:
    """How bitsandbytes keeps a layer's weight.

    Args:
        layer: Any.

    Returns:
        4 or 8; `None` for a weight that is not quantized, and for a layer without one.
    """
    weight = getattr(layer, "weight", None)
    return None if weight is None else peft.bitsandbytes_bits(cast("Tensor", weight))


def parameter_count(parameter: nn.Parameter) -> int:
    """How many parameters a tensor stands for: bitsandbytes packs two 4-bit ones, or more, into an element.

    Args:
        parameter: Any.

    Returns:
        Their number.
    """
    return bitsandbytes.original_size(parameter)


def weight_bytes(layer: nn.Module) -> int:
    """The memory of a layer's weight, with the scales of a quantized one.

    Args:
        layer: With a `weight`.

    Returns:
        Bytes.
    """
    tensors = [cast("Tensor", layer.weight), *bitsandbytes.tensors_beside_weight(layer)]
    return sum(tensor.nbytes for tensor in tensors)


def dequantized_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer, and nothing else of it changes.

    PEFT's own function replaces an 8-bit weight on a CPU by one that has lost its scales, after which the layer fails.

    Args:
        layer: With a `weight`.

    Returns:
        The shape in which the layer keeps it, floating dtype; the parameter itself where it is not quantized.

    Raises:
        BackboneError: If bitsandbytes has reordered a 4-bit weight, see `keep_4bit_weights_in_order`.
    """
    bits = quantized_bits(layer)
    if bits is None:
        return peft.dequantized(layer)
    if bits == 8:  # noqa: PLR2004
        return bitsandbytes.dequantized_8bit(layer)
    if bitsandbytes.is_reordered(layer):
        msg = (
            "a 4-bit weight has been reordered by an evaluation on this CPU and cannot be read or trained any more; "
            "call keep_4bit_weights_in_order(model) before the first evaluation."
        )
        raise BackboneError(msg)
    return bitsandbytes.dequantized_4bit(layer)


def requantized(layer: nn.Module, weight: Tensor) -> nn.Module:
    """A new layer with another weight, quantized in the same way.

    Args:
        layer: bitsandbytes' 4- or 8-bit layer; left as it is, its bias is shared.
        weight: (out_features, in_features), floating dtype.

    Returns:
        The layer, on the old one's device.
    """
    quantize = bitsandbytes.quantized_4bit if quantized_bits(layer) == 4 else bitsandbytes.quantized_8bit  # noqa: PLR2004
    new = quantize(layer, weight)
    new.bias = layer.bias
    keep_biases_as_they_are(new)
    keep_4bit_weights_in_order(new)
    return new.train(layer.training)


def keep_biases_as_they_are(model: nn.Module) -> None:
    """Stops bitsandbytes from casting the biases of its layers, in place, to the dtype in which they compute.

    A frozen bias would lose digits, and one that trains would be rounded back to what it was after every small step
    (seen with bitsandbytes 0.50.2). Each pass gets a cast copy instead.

    Args:
        model: Just quantized; changed in place.
    """
    for module in model.modules():
        if getattr(module, "bias", None) is not None and hasattr(module, "weight") and quantized_bits(module):
            module.register_forward_pre_hook(_cast_bias)
            module.register_forward_hook(_forget_cast_bias, always_call=True)


def _cast_bias(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    dtype = bitsandbytes.compute_dtype(module) or arguments[0].dtype
    hide_parameter(module, "bias", parameter_of(module, "bias").to(dtype))


def _forget_cast_bias(module: nn.Module, *_: Any) -> None:
    show_parameter(module, "bias")


def keep_8bit_scales_beside_weights(model: nn.Module) -> None:
    """Moves what belongs to 8-bit weights to where the weights are.

    A module that holds such a layer moves its parameters, but not what bitsandbytes 0.50.2 keeps beside them, unless
    the layer itself is asked to move.

    Args:
        model: Any; changed in place.
    """
    for module in model.modules():
        bitsandbytes.move_scales_to_weight(module)


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """4-bit layers compute in float32, whatever they trained in: of two models that are compared, neither rounds.

    Args:
        model: Any; 8-bit layers round their inputs all the same.

    Yields:
        Nothing; afterwards the layers compute as before.
    """
    dtypes = {module: bitsandbytes.compute_dtype(module) for module in model.modules()}
    found = {module: dtype for module, dtype in dtypes.items() if dtype is not None}
    for module in found:
        bitsandbytes.set_compute_dtype(module, torch.float32)
    try:
        yield
    finally:
        for module, dtype in found.items():
            bitsandbytes.set_compute_dtype(module, dtype)


def forget_8bit_weights(model: nn.Module) -> None:
    """Lets go of the weights that 8-bit layers keep beside their parameters.

    Args:
        model: Will not run any more.
    """
    for module in model.modules():
        bitsandbytes.forget_8bit_weight(module)


def keep_4bit_weights_in_order(model: nn.Module) -> None:
    """Stops bitsandbytes from reordering 4-bit weights in an evaluation on a CPU with AVX512-BF16.

    It does so in place, rounds the blocks' scales to bfloat16, and turns the order back only in `state_dict`. After a
    validation the layer would pass no gradient to its input, and PEFT would read its weight wrongly (seen with
    bitsandbytes 0.50.2).

    Args:
        model: Any; changed in place.
    """
    for module in model.modules():
        bitsandbytes.keep_order(module)
