"""Truncates trained adapters to a lower rank, without training again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_lightning.lora.delta import adapted_layers, adapter_factors, expert_factors


@torch.no_grad()
def decompose_factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of B A.

    With the QR decompositions B = Qb Rb and A^T = Qa Ra, the singular vectors are those of the small Rb Ra^T in the
    bases Qb and Qa; no (out, in) matrix is formed.

    Args:
        a: A, (rank, in_features), any floating dtype.
        b: B, (out_features, rank), any floating dtype.

    Returns:
        U, (out_features, n), S, (n,), descending, and Vh, (n, in_features), float64, on the CPU; n is the rank, or the
        smaller side of the matrix if that is less.
    """
    # Not every accelerator has float64.
    left, right = torch.linalg.qr(b.detach().cpu().double()), torch.linalg.qr(a.detach().cpu().double().T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    return left.Q @ u, s, vh @ right.Q.T


@torch.no_grad()
def truncate_factors(a: Tensor, b: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The factors of the best approximation of B A of rank r (Eckart & Young 1936).

    Args:
        a: A, (rank, in_features), any floating dtype.
        b: B, (out_features, rank), any floating dtype.
        r: The rank to keep; at least 0.

    Returns:
        A and B of the shapes and dtypes given, float64 inside; rows and columns beyond r are zero.
    """
    u, s, vh = decompose_factors(a, b)
    root = s[:r].sqrt()
    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    new_a[: len(root)] = (root[:, None] * vh[:r]).to(a)
    new_b[:, : len(root)] = (u[:, :r] * root).to(b)
    return new_a, new_b


@contextmanager
def truncated_adapters(model: nn.Module, r: int) -> Iterator[None]:
    """Runs a model with every adapter truncated to a rank, then restores the factors bit for bit.

    Args:
        model: With plain LoRA or DoRA adapters, not sharded.
        r: The rank to keep; adapters of a lower rank stay as they are.

    Yields:
        Nothing; the adapters are truncated.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            layers = adapted_layers(model).values()
            for factors in [pair for layer in layers for pair in expert_factors(layer, *adapter_factors(layer))]:
                if len(factors[0]) <= r:
                    continue
                for factor, new in zip(factors, truncate_factors(*factors, r), strict=True):
                    saved.append((factor, factor.detach().clone()))
                    factor.copy_(new)
        yield
    finally:
        with torch.no_grad():
            for factor, former in saved:
                factor.copy_(former)
