"""Merge adapters into the weights under them, for each choice of base, and undo it.

A 16- or 32-bit base has one merged weight, W + dW. A quantized base has three, which differ by the quantization error
q = original - dequantized: dequantized + dW, which is what was trained, in 16 or 32 bits; original + dW; and
dequantized + dW quantized again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_lightning.compat.bitsandbytes import dequantized_dtype
from lora_lightning.compat.peft import LoraLayer, ParamWrapper
from lora_lightning.compat.transformers import Conv1D
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, adapted_parameter, is_transposed, pretrained_weight
from lora_lightning.lora.initial_factors import pretrained_base
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.quantized import dequantized_weight, quantized_bits, requantized
from lora_lightning.lora.sharding import local_shard, shard_like
from lora_lightning.lora.variants import variant_of_layer
from lora_lightning.lora.variants.variant import Variant

MergeTarget = Literal["base", "dequantized", "original", "requantized"]
MERGEABLE = (nn.Linear, nn.Embedding, Conv1D)  # bitsandbytes' layers are nn.Linear too


def merge_targets(model: nn.Module, originals: Mapping[str, Tensor] | None = None) -> list[MergeTarget]:
    """The targets that an adapter can be merged into.

    Args:
        model: A PEFT model, or anything that contains one.
        originals: The weights that the base was quantized from, if they are available.

    Returns:
        `base` alone if nothing is quantized; else `dequantized`, `original` if `originals` is given, and `requantized`;
        empty without adapters.
    """
    layers = adapted_layers(model).values()
    if not any(quantized_bits(layer.get_base_layer()) for layer in layers):
        return ["base"] if layers else []
    return ["dequantized", "requantized"] if originals is None else ["dequantized", "original", "requantized"]


@torch.no_grad()
def merged_weight(module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    """One layer's weight with its adapter merged into it, as the layer's variant merges; W + dW for plain LoRA.

    Variants of PEFT that this package does not train are merged by PEFT's own code.

    Args:
        module: The layer's name, for messages.
        layer: Of `adapted_layers`. Under FSDP2 every process has to call this.
        weight: W, (out_features, in_features), float32: of `pretrained_weight`, or the original weight; of a parameter
            that holds experts (experts, out_features, in_features).

    Returns:
        The shape of `weight`, float32, a new tensor.

    Raises:
        ConfigurationError: If the variant cannot be merged.
    """
    own, of_peft = variant_of_layer(layer), layer.lora_variant.get(ADAPTER)
    if own is not Variant or of_peft is None:
        return own.merged_weight(module, layer, weight)
    stored = (weight.T if is_transposed(layer) else weight).clone()
    try:
        merged = of_peft.merge_safe(layer, ADAPTER, stored)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        msg = f"{module}: {type(of_peft).__name__} cannot be merged ({error}); keep the adapter beside its base."
        raise ConfigurationError(msg) from error
    return merged.T if is_transposed(layer) else merged


@contextmanager
def merged_adapters(
    model: nn.Module, target: MergeTarget, originals: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Runs the model with its adapters merged, then puts everything back as it was, bit for bit.

    Each adapted layer is replaced by the layer below it, as in an exported model. Memory beside the model: for `base` a
    copy of the adapted weights in host memory (13 GB for all linear layers of a 7B Llama in 16 bits), since they are
    overwritten in place; for a quantized base the adapted weights on the device as the target stores them (13 GB more
    for `dequantized` and `original` in 16 bits, 3.5 GB for `requantized` in 4), as the merged model will need anyway,
    and nothing is overwritten. Layers are merged one by one, in float32; if the model is sharded, every process merges
    its own shards, so all of them have to call this.

    Args:
        model: A PEFT model, or anything that contains one.
        target: One of `merge_targets`.
        originals: For `original`: (out_features, in_features), any floating dtype, by the name of the layer.

    Yields:
        Nothing; the model is merged.

    Raises:
        ConfigurationError: If a layer cannot be merged, or its original weight is missing.
    """

    def make(module: str, layer: LoraLayer, stack: ExitStack) -> nn.Module:
        base = layer.get_base_layer()
        if not isinstance(base, MERGEABLE) and not isinstance(layer, ParamWrapper):
            msg = f"{module}: a {type(base).__name__} cannot be merged; keep the adapter beside its base."
            raise ConfigurationError(msg)
        if quantized_bits(base):
            return _merged_quantized(module, layer, target, originals)
        _overwrite_until(
            stack, adapted_parameter(layer), as_stored(layer, merged_weight(module, layer, pretrained_weight(layer)))
        )
        if (bias := merged_bias(module, layer)) is not getattr(base, "bias", None):
            _overwrite_until(stack, cast("Tensor", base.bias), cast("Tensor", bias))
        return base

    with _layers_replaced(model, make):
        yield


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Runs the model on its pretrained base alone; modules that train in full beside the adapters are unchanged.

    Args:
        model: A PEFT model, or anything that contains one.

    Yields:
        Nothing; adapters are out of the model.
    """
    bases = _layers_replaced(model, lambda module, layer, stack: layer.get_base_layer())  # noqa: ARG005
    with pretrained_base(model), bases:
        yield


@torch.no_grad()
def quantization_errors(
    module: str, layer: LoraLayer, original: Tensor | None = None
) -> dict[Literal["quantization_error", "requantization_error"], float]:
    """The ratios of quantization errors to the learnt update, as Frobenius norms.

    Above 1, the choice of the base changes the weight more than training did.

    Args:
        module: The layer's name.
        layer: Of `adapted_layers`, quantized.
        original: The weight that it was quantized from, (out_features, in_features), any floating dtype.

    Returns:
        `quantization_error`, ||original - dequantized|| / ||dW||, if the original is given; `requantization_error`,
        ||dW after quantizing W + dW again - dW|| / ||dW||. Infinity for an update of 0.
    """
    base = pretrained_weight(layer)
    sum_ = merged_weight(module, layer, base)
    size = (sum_ - base).norm()
    again = dequantized_weight(requantized(layer.get_base_layer(), sum_)).float()
    errors = {"requantization_error": float((again - sum_).norm() / size)}
    if original is not None:
        errors["quantization_error"] = float((original.to(base) - base).norm() / size)
    return cast("dict[Literal['quantization_error', 'requantization_error'], float]", errors)


class _FloatingLinear(nn.Linear):
    """A linear layer that computes in its own dtype, whatever the dtype of the rest of the model."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return functional.linear(input.to(self.weight.dtype), self.weight, bias).to(input.dtype)


def _merged_quantized(
    module: str, layer: LoraLayer, target: MergeTarget, originals: Mapping[str, Tensor] | None
) -> nn.Module:
    base = cast("Any", layer.get_base_layer())
    if target == "original":
        if originals is None or module not in originals:
            msg = f"{module}: `originals` does not hold its original weight; give the weights before quantization."
            raise ConfigurationError(msg)
        dtype, weight = originals[module].dtype, originals[module].to(base.weight.device, torch.float32)
    else:
        dtype, weight = dequantized_dtype(base.weight), pretrained_weight(layer)
    weight = merged_weight(module, layer, weight)
    if target == "requantized":
        new = cast("nn.Linear", requantized(base, weight))
    else:
        new = _FloatingLinear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        new.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if (bias := merged_bias(module, layer)) is not None:
        new.bias = nn.Parameter(bias, requires_grad=False)
    return new.train(base.training)


@torch.no_grad()
def merged_bias(module: str, layer: LoraLayer) -> Tensor | None:
    """The bias of a layer with its adapter's bias (`lora_bias`) merged into it.

    Args:
        module: The layer's name, for messages.
        layer: Of `adapted_layers`.

    Returns:
        (out_features,), floating dtype; the layer's own bias, or `None`, if the adapter has no bias.

    Raises:
        ConfigurationError: If the adapter has a bias and the layer has none.
    """
    bias = getattr(layer.get_base_layer(), "bias", None)
    if not layer.lora_bias.get(ADAPTER):
        return bias
    if bias is None:
        msg = (
            f"{module}: the adapter has a bias (lora_bias) but its base has none, so it cannot be merged; set "
            "lora_bias to false."
        )
        raise ConfigurationError(msg)
    return cast("Tensor", bias + layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].bias)


def as_stored(layer: LoraLayer, weight: Tensor) -> Tensor:
    """A weight of shape (out_features, in_features) in the layout in which the layer stores it."""
    return weight.mT if is_transposed(layer) else weight


@torch.no_grad()
def _overwrite_until(stack: ExitStack, parameter: Tensor, values: Tensor) -> None:
    """Overwrites in place, so that whatever shares the storage sees it, until the stack is unwound."""
    own = local_shard(parameter.detach())
    saved = own.to("cpu", copy=True)
    stack.callback(lambda: own.copy_(saved))
    own.copy_(local_shard(shard_like(values, parameter)))


@contextmanager
def _layers_replaced(model: nn.Module, make: Callable[[str, LoraLayer, ExitStack], nn.Module]) -> Iterator[None]:
    names = {cast("nn.Module", layer): name for name, layer in adapted_layers(model).items()}
    places = [
        (parent, child, layer)
        for parent in model.modules()
        for child, layer in parent.named_children()
        if layer in names
    ]
    with ExitStack() as stack:
        made = {layer: make(name, cast("LoraLayer", layer), stack) for layer, name in names.items()}
        for parent, child, layer in places:
            stack.callback(setattr, parent, child, layer)
            setattr(parent, child, made[layer])
        yield
