"""What is special about bitsandbytes' 4- and 8-bit layers: size, dequantising, requantising, and a trap on CPUs."""

import math
from typing import Any, cast

from peft.utils.integrations import dequantize_module_weight, get_bnb_param_type
from torch import Tensor, nn

from lora_lightning.errors import BackboneError


def quantized_bits(layer: nn.Module) -> int | None:
    """How bitsandbytes keeps a layer's weight.

    Args:
        layer: With a `weight`.

    Returns:
        4 or 8; `None` for a weight that is not quantised.
    """
    kind = get_bnb_param_type(cast("nn.Parameter", layer.weight))
    return None if kind is False else int(kind[0])


def parameter_count(parameter: nn.Parameter) -> int:
    """How many parameters a tensor stands for: bitsandbytes packs two 4-bit ones, or more, into an element.

    Args:
        parameter: Any.

    Returns:
        Their number.
    """
    state = getattr(parameter, "quant_state", None)
    return math.prod(parameter.shape if state is None else state.shape)


def dequantized_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer, and nothing else of it changes.

    PEFT's own function replaces an 8-bit weight on a CPU by one that has lost its scales, after which the layer fails.

    Args:
        layer: With a `weight`.

    Returns:
        The shape in which the layer keeps it, floating dtype; the parameter itself where it is not quantised.

    Raises:
        BackboneError: If bitsandbytes has reordered a 4-bit weight, see `keep_4bit_weights_in_order`.
    """
    bits = quantized_bits(layer)
    if bits is None:
        return dequantize_module_weight(layer)  # other libraries' layers too
    from bitsandbytes import functional  # noqa: PLC0415  # there where a layer is quantised

    weight, state = cast("Any", layer.weight), cast("Any", getattr(layer, "state", None))
    if bits == 8:  # noqa: PLR2004
        scales = weight.SCB if state.SCB is None else state.SCB
        return cast("Tensor", functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)))
    if getattr(weight.quant_state, "packing_format_for_cpu", False):
        msg = (
            "a 4-bit weight has been reordered by an evaluation on this CPU and cannot be read or trained any more; "
            "call keep_4bit_weights_in_order(model) before the first evaluation."
        )
        raise BackboneError(msg)
    return cast("Tensor", functional.dequantize_4bit(weight.data, weight.quant_state))


def requantized(layer: nn.Module, weight: Tensor) -> nn.Module:
    """A new layer with another weight, quantised in the same way.

    Args:
        layer: bitsandbytes' 4- or 8-bit layer; left as it is, its bias is shared.
        weight: (out_features, in_features), floating dtype.

    Returns:
        The layer, on the old one's device.
    """
    from bitsandbytes import nn as bnb  # noqa: PLC0415  # there where a layer is quantised

    out_features, in_features = weight.shape
    old, new, values = cast("tuple[Any, Any, Any]", (layer.weight, None, None))
    if quantized_bits(layer) == 4:  # noqa: PLR2004
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
    else:
        threshold = cast("Any", layer.state).threshold
        new = bnb.Linear8bitLt(
            in_features, out_features, bias=False, has_fp16_weights=False, threshold=threshold, device="meta"
        )
        values = bnb.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    new.weight = values.to(old.device)  # quantises
    new.bias = layer.bias
    keep_biases_as_they_are(new)
    keep_4bit_weights_in_order(new)
    return cast("nn.Module", new.train(layer.training))


def keep_biases_as_they_are(model: nn.Module) -> None:
    """Stops bitsandbytes from casting the biases of its layers, in place, to the dtype in which they compute.

    A frozen bias would lose digits, and one that trains would be rounded back to what it was after every small step
    (seen with bitsandbytes 0.50.2). Each pass gets a cast copy instead.

    Args:
        model: Just quantised; changed in place.
    """
    for module in model.modules():
        if getattr(module, "bias", None) is not None and hasattr(module, "weight") and quantized_bits(module):
            module.register_forward_pre_hook(_cast_bias)
            module.register_forward_hook(_forget_cast_bias, always_call=True)


def _cast_bias(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    dtype = getattr(module, "compute_dtype", None) or arguments[0].dtype  # 8-bit layers take that of their input
    module.__dict__["bias"] = cast("Tensor", module._parameters["bias"]).to(dtype)  # noqa: SLF001  # hides the parameter


def _forget_cast_bias(module: nn.Module, *_: Any) -> None:
    module.__dict__.pop("bias", None)


def keep_8bit_scales_beside_weights(model: nn.Module) -> None:
    """Moves what belongs to 8-bit weights to where the weights are.

    A module that holds such a layer moves its parameters, but not what bitsandbytes 0.50.2 keeps beside them, unless
    the layer itself is asked to move.

    Args:
        model: Any; changed in place.
    """
    for module in model.modules():
        state, weight = getattr(module, "state", None), getattr(module, "weight", None)
        if not hasattr(state, "SCB") or weight is None:
            continue
        for owner in (state, weight):
            for name in ("CB", "SCB"):
                if isinstance(tensor := getattr(owner, name, None), Tensor):
                    setattr(owner, name, weight.data if name == "CB" else tensor.to(weight.device))


def keep_4bit_weights_in_order(model: nn.Module) -> None:
    """Stops bitsandbytes from reordering 4-bit weights in an evaluation on a CPU with AVX512-BF16.

    It does so in place, rounds the blocks' scales to bfloat16, and turns the order back only in `state_dict`. After a
    validation the layer would pass no gradient to its input, and PEFT would read its weight wrongly (seen with
    bitsandbytes 0.50.2).

    Args:
        model: Any; changed in place.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
