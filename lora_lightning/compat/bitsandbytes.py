"""Undocumented names of bitsandbytes 0.50: what its 4- and 8-bit layers keep beside a weight, and faults on CPUs."""

import math
from typing import Any, cast

from bitsandbytes import functional
from bitsandbytes import nn as bnb
from torch import Tensor, dtype, float16, nn


def original_size(parameter: Tensor) -> int:
    """Returns how many weights a tensor holds: a 4-bit one packs two or more into an element.

    Args:
        parameter: Quantized or not.
    """
    state = getattr(parameter, "quant_state", None)
    return math.prod(parameter.shape if state is None else state.shape)


def tensors_beside_weight(layer: nn.Module) -> list[Tensor]:
    """Returns what a quantized layer keeps beside its packed weight: scales, and the numbers that codes stand for.

    Args:
        layer: Of a 4- or 8-bit layer; others keep nothing.
    """
    weight, state = cast("Any", layer.weight), getattr(layer, "state", None)
    quantized = getattr(weight, "quant_state", None)
    found: list[Any] = [getattr(state, "SCB", None) if getattr(weight, "SCB", None) is None else weight.SCB]
    for part in (quantized, getattr(quantized, "state2", None)):
        found += [getattr(part, name, None) for name in ("absmax", "code", "offset")]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def dequantized_dtype(weight: Tensor) -> dtype:
    """Returns the dtype from which a weight was quantized and to which it is dequantized.

    Args:
        weight: Of a 4- or 8-bit layer; the latter are quantized from float16 and keep no other dtype.
    """
    state: Any = getattr(weight, "quant_state", None)
    return float16 if state is None else cast("dtype", state.dtype)


def dequantized_8bit(layer: nn.Module) -> Tensor:
    """Returns the weight of an 8-bit layer, (out_features, in_features), floating dtype; changes nothing.

    The scales of the rows are in the weight until the first forward pass, then in the layer's state.

    Args:
        layer: `Linear8bitLt`.
    """
    weight, state = cast("Any", layer.weight), cast("Any", layer.state)
    scales = weight.SCB if state.SCB is None else state.SCB
    return cast("Tensor", functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)))


def dequantized_4bit(layer: nn.Module) -> Tensor:
    """Returns the weight of a 4-bit layer, (out_features, in_features), floating dtype; changes nothing.

    Args:
        layer: `Linear4bit` that `is_reordered` does not hold for.
    """
    weight = cast("Any", layer.weight)
    return cast("Tensor", functional.dequantize_4bit(weight.data, weight.quant_state))


def is_reordered(layer: nn.Module) -> bool:
    """Returns whether an evaluation on a CPU with AVX512-BF16 has reordered a 4-bit weight in place.

    Args:
        layer: `Linear4bit`.
    """
    return bool(getattr(cast("Any", layer.weight).quant_state, "packing_format_for_cpu", False))


def keep_order(layer: nn.Module) -> None:
    """Stops a 4-bit layer from reordering its weight in an evaluation on such a CPU; other modules are left alone.

    No option turns that off, and a reordered weight passes no gradient to the layer's input.

    Args:
        layer: Any module; changed in place.
    """
    if hasattr(layer, "support_avx512bf16_for_cpu"):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantized_4bit(layer: nn.Module, weight: Tensor) -> nn.Module:
    """Quantizes a weight to 4 bits with the settings of another layer.

    Args:
        layer: `Linear4bit`; left as it is.
        weight: (out_features, in_features), floating dtype.

    Returns:
        A layer without bias, on the device of the other one.
    """
    out_features, in_features = weight.shape
    old = cast("Any", layer.weight)
    new = bnb.Linear4bit(in_features, out_features, bias=False, compute_dtype=layer.compute_dtype, device="meta")
    values = bnb.Params4bit(
        weight.to(old.quant_state.dtype),
        requires_grad=False,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        quant_storage=old.quant_storage,
        module=new,
    )
    new.weight = values.to(old.device)  # quantizes
    return cast("nn.Module", new)


def quantized_8bit(layer: nn.Module, weight: Tensor) -> nn.Module:
    """Quantizes a weight to 8 bits with the settings of another layer.

    Args:
        layer: `Linear8bitLt`; left as it is.
        weight: (out_features, in_features), floating dtype.

    Returns:
        A layer without bias, on the device of the other one.
    """
    out_features, in_features = weight.shape
    threshold = cast("Any", layer.state).threshold
    new = bnb.Linear8bitLt(
        in_features, out_features, bias=False, has_fp16_weights=False, threshold=threshold, device="meta"
    )
    values = bnb.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    new.weight = values.to(cast("Any", layer.weight).device)  # quantizes
    return cast("nn.Module", new)


def compute_dtype(layer: nn.Module) -> dtype | None:
    """Returns the dtype in which a 4-bit layer computes; `None` for other layers, which take that of their input.

    Args:
        layer: Any.
    """
    return cast("dtype | None", getattr(layer, "compute_dtype", None))


def set_compute_dtype(layer: nn.Module, value: dtype) -> None:
    """Sets the dtype in which a 4-bit layer computes.

    Args:
        layer: `Linear4bit`; changed in place.
        value: A floating dtype.
    """
    layer.compute_dtype = value  # type: ignore[assignment]


def forget_8bit_weight(layer: nn.Module) -> None:
    """Lets go of what an 8-bit layer keeps beside its weight: the weight itself once more, and its scales.

    Args:
        layer: Any module; one without such a weight is left alone. It cannot run any more.
    """
    for owner in (getattr(layer, "state", None), getattr(layer, "weight", None)):
        for name in ("CB", "SCB"):
            if isinstance(getattr(owner, name, None), Tensor):
                setattr(owner, name, None)


def move_scales_to_weight(layer: nn.Module) -> None:
    """Moves what belongs to an 8-bit weight to the device of the weight; other modules are left alone.

    A module that contains such a layer moves its parameters, but not what bitsandbytes keeps beside them.

    Args:
        layer: Any module; changed in place.
    """
    state, weight = getattr(layer, "state", None), getattr(layer, "weight", None)
    if not hasattr(state, "SCB") or weight is None:
        return
    for owner in (state, weight):
        for name in ("CB", "SCB"):
            if isinstance(tensor := getattr(owner, name, None), Tensor):
                setattr(owner, name, weight.data if name == "CB" else tensor.to(weight.device))
