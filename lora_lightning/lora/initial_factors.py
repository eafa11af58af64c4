"""Adapters that start with a part of the base (PiSSA, OLoRA), and what their base lacks.

The layer computes W_res x + s B A x with W_res = W - s B0 A0, so that at the start (A = A0, B = B0) it is W x. What
was learnt is dW = s (B A - B0 A0), of rank up to 2 r. A0 and B0 stay with the layer as buffers and go into every
checkpoint: with them the residual base is rebuilt wherever the checkpoint is loaded, whatever sign or platform an SVD
would have there, and the adapter is exported relative to the pretrained W.

Source: Meng et al. 2024 (arXiv 2404.02948), equations 2 to 4; Büyükakyüz 2024 (arXiv 2406.01775).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lora_lightning.compat.peft import LoraLayer

NAMES = ("initial_A", "initial_B")  # of the buffers


def keep_initial_factors(layer: LoraLayer, a: Tensor, b: Tensor) -> None:
    """Keeps the factors that an adapter starts with.

    Args:
        layer: PEFT's, just made.
        a: A0, (r, in_features), floating dtype.
        b: B0, (out_features, r), floating dtype.
    """
    for name, factor in zip(NAMES, (a, b), strict=True):
        cast("nn.Module", layer).register_buffer(name, factor.detach().clone())


@torch.no_grad()
def derive_initial_factors(layer: LoraLayer, pretrained: Tensor) -> None:
    """Keeps the factors that PEFT took out of a base, for an adapter that was saved without them.

    Args:
        layer: PEFT's, whose base is W - s B0 A0.
        pretrained: W, in the shape in which the base stores its weight, floating dtype.
    """
    lacked = pretrained.float() - cast("Tensor", layer.get_base_layer().weight).float()
    if getattr(layer, "fan_in_fan_out", False):
        lacked = lacked.T
    ((name, scaling),) = layer.scaling.items()  # there is only one adapter
    left, values, right = torch.linalg.svd(lacked / scaling, full_matrices=False)
    rank = layer.r[name]  # of B0 A0; what is beyond is rounding
    keep_initial_factors(layer, right[:rank], left[:, :rank] * values[:rank])


def initial_factors(layer: nn.Module | LoraLayer) -> tuple[Tensor, Tensor] | None:
    """The factors that an adapter started with.

    Args:
        layer: PEFT's.

    Returns:
        A0, (r, in_features), and B0, (out_features, r); `None` if it started at dW = 0.
    """
    found = (getattr(layer, NAMES[0]), getattr(layer, NAMES[1])) if hasattr(layer, NAMES[0]) else None
    return cast("tuple[Tensor, Tensor] | None", found)


def initial_factor_names(model: nn.Module) -> list[str]:
    """Dotted names of the buffers that a checkpoint must hold."""
    return [name for name, _ in model.named_buffers() if name.endswith(NAMES)]


@torch.no_grad()
def initial_delta(layer: LoraLayer) -> Tensor:
    """The part of the pretrained weight that the base lacks: s B0 A0.

    Args:
        layer: PEFT's, with initial factors.

    Returns:
        In the shape in which the base stores its weight, float32.
    """
    a, b = cast("tuple[Tensor, Tensor]", initial_factors(layer))
    (scaling,) = layer.scaling.values()  # there is only one adapter
    product: Tensor = scaling * (b.float() @ a.float())
    return product.T if getattr(layer, "fan_in_fan_out", False) else product


@torch.no_grad()
def follow_initial_factors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Rebuilds the residual bases for other initial factors, before these are loaded.

    If the factors are the same, as on the same machine with the same seed, not a bit changes.

    Args:
        model: Holds the layers.
        state: The tensors about to be loaded; only `initial_A` and `initial_B` matter.
    """
    for name, layer in _layers(model):
        own = cast("tuple[Tensor, Tensor]", initial_factors(layer))
        new = [state[f"{name}.{factor}"].to(value) for factor, value in zip(NAMES, own, strict=True)]
        if all(torch.equal(left, right) for left, right in zip(own, new, strict=True)):
            continue
        weight = cast("Tensor", layer.get_base_layer().weight)
        pretrained = weight.float() + initial_delta(layer)
        for factor, value in zip(own, new, strict=True):
            factor.copy_(value)
        weight.copy_(pretrained - initial_delta(layer))


@contextmanager
def pretrained_base(model: nn.Module) -> Iterator[None]:
    """Restores the pretrained bases inside this context; afterwards the bases are bit for bit what they were.

    Args:
        model: Holds the layers.

    Yields:
        Nothing; W is the pretrained weight, up to rounding.
    """
    with ExitStack() as stack:
        for _, layer in _layers(model):
            weight = cast("Tensor", layer.get_base_layer().weight).detach()
            stack.callback(weight.copy_, weight.clone())
            weight.copy_(weight.float() + initial_delta(layer))
        yield


def _layers(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    found = [(name, module) for name, module in model.named_modules() if initial_factors(module) is not None]
    return cast("list[tuple[str, LoraLayer]]", found)
