"""Frozen weights in autocast's dtype, cast once instead of at every step.

Autocast casts a frozen weight whenever a layer is called. On a CPU that takes a tenth of a training step of a small
encoder, and the result is always the same, so a layer keeps it while it trains. Other devices cast quickly, and have
less memory to spare.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_lightning.compat.torch import version

KEPT = "kept_cast"  # of a module: what the cast was made from, and the cast
IS_SHARDED = "keeps_no_casts"  # of a module whose weights are gathered for each call: a cast would outlive them


def cast_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """Casts a layer's weight, or finds it as it was cast before.

    Args:
        layer: With a `weight`.
        dtype: Floating.

    Returns:
        The weight in the dtype; differentiable if the weight trains.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if weight.dtype == dtype or not _may_keep(layer, weight):
        return weight.to(dtype)
    source = (weight.data_ptr(), version(weight), dtype)
    kept = layer.__dict__.get(KEPT)
    if kept is None or kept[0] != source:
        kept = layer.__dict__[KEPT] = source, weight.detach().to(dtype)
    found: Tensor = kept[1]
    return found


def _may_keep(layer: nn.Module, weight: Tensor) -> bool:
    trains = layer.training and not weight.requires_grad and not weight.is_inference()
    return trains and weight.device.type == "cpu" and IS_SHARDED not in layer.__dict__


def forget_casts(model: nn.Module) -> None:
    """Drops all weights that were cast, so that their memory is free for something else than training."""
    for module in model.modules():
        module.__dict__.pop(KEPT, None)


def keep_no_casts(model: nn.Module) -> None:
    """Switches this off for a model whose weights are sharded."""
    for module in model.modules():
        module.__dict__[IS_SHARDED] = True


class FrozenLinear(nn.Linear):
    """`nn.Linear` whose frozen weight is cast once for autocast; the result is the same, bit for bit."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name
        """The layer.

        Args:
            input: (..., in_features), floating dtype.

        Returns:
            (..., out_features), the same dtype, or under autocast that of autocast.
        """
        device = input.device.type
        if not torch.is_autocast_enabled(device) or self.weight.dtype != torch.float32:
            return super().forward(input)
        return functional.linear(input, cast_weight(self, torch.get_autocast_dtype(device)), self.bias)


def keep_casts_of_linear_layers(model: nn.Module) -> None:
    """Switches every frozen `nn.Linear` to `FrozenLinear`, in place; parameters, names and saved files do not change.

    Args:
        model: With its adapters in place.
    """
    for module in model.modules():
        if type(module) is nn.Linear and not any(each.requires_grad for each in module.parameters()):
            module.__class__ = FrozenLinear
