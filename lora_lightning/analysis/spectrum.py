"""Singular values of dW = scaling * B @ A from its factors, and the rank that they amount to.

With the QR decompositions B = Qb Rb and A^T = Qa Ra, dW = scaling * Qb (Rb Ra^T) Qa^T: the singular values of dW are
those of a core no larger than (r, r). No (out, in) matrix is formed.

Everything is computed in float64. In float32 the error would be that of ||A|| ||B||, which may be far above ||dW||.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_lightning.analysis.threads import map_in_threads
from lora_lightning.lora.delta import AdapterDelta

MOST = 0.9  # of the adapters


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, detached; on the CPU where its own device has no such numbers."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).detach().double()


@torch.no_grad()
def delta_core(delta: AdapterDelta) -> Tensor:
    """A small matrix with the singular values, and so with the Frobenius norm, of dW.

    Args:
        delta: The update of a layer.

    Returns:
        (min(out, r), min(in, r)), float64, on the CPU.
    """
    b = torch.linalg.qr(in_float64(delta.B), mode="r").R
    a = torch.linalg.qr(in_float64(delta.A).T, mode="r").R
    core: Tensor = delta.scaling * (b @ a.T)
    return core.cpu()


def singular_values(deltas: Sequence[AdapterDelta]) -> list[Tensor]:
    """Singular values of several updates.

    Args:
        deltas: The updates; shapes may differ.

    Returns:
        For each (min(out, in, r),), float64, on the CPU, descending, not negative; NaN where a factor is not finite.
    """
    return map_in_threads(_singular_values, deltas)


def _singular_values(delta: AdapterDelta) -> Tensor:
    core = delta_core(delta)
    if core.isfinite().all():
        values: Tensor = torch.linalg.svdvals(core)
        return values
    return core.new_full((min(core.shape),), torch.nan)  # an SVD would raise


def effective_rank(spectrum: Tensor) -> Tensor:
    """exp(entropy) of the singular values as shares of their sum.

    Source: Roy & Vetterli 2007, definition 1.

    Args:
        spectrum: (..., n), not negative, floating dtype.

    Returns:
        (...), the dtype of `spectrum`, dimensionless, in [1, n]; 0 for a zero update.
    """
    total = spectrum.sum(dim=-1, keepdim=True)
    rank: Tensor = torch.special.entr(spectrum / total).sum(dim=-1).exp()
    return rank.masked_fill(total.squeeze(-1) == 0, 0.0)


def stable_rank(spectrum: Tensor) -> Tensor:
    """||dW||_F^2 / sigma_1^2, which small singular values hardly change.

    Args:
        spectrum: (..., n), descending, not negative, floating dtype.

    Returns:
        (...), the dtype of `spectrum`, dimensionless, in [1, n]; 0 for a zero update.
    """
    largest = spectrum[..., :1]
    rank = (spectrum / largest).square().sum(dim=-1)
    return rank.masked_fill(largest.sum(dim=-1) == 0, 0.0)


def energy_rank(spectrum: Tensor, share: float) -> Tensor:
    """The least k for which the k largest singular values hold a share of the energy, sigma^2 summed.

    The best approximation of rank k (Eckart & Young 1936) then keeps that share of ||dW||_F^2.

    Args:
        spectrum: (..., n), descending, not negative, floating dtype.
        share: In (0, 1].

    Returns:
        (...), the dtype of `spectrum`, whole numbers in [1, n]; 0 for a zero update.
    """
    energy = spectrum.square().cumsum(dim=-1)
    total = energy[..., -1:].sum(dim=-1)
    rank = 1.0 + (energy < share * energy[..., -1:]).sum(dim=-1, dtype=spectrum.dtype)
    return rank.masked_fill(total == 0, 0.0).masked_fill(total.isnan(), torch.nan)


def rank_numbers(spectrum: Tensor, r: int) -> dict[str, float]:
    """How much of its rank one adapter uses.

    Args:
        spectrum: Singular values of its dW, (n,), descending.
        r: The rank that its factors allow.

    Returns:
        By name: `effective_rank`, `stable_rank`, `energy_rank_90`, `energy_rank_99`, and `utilization`, which is
        effective rank / r.
    """
    effective = float(effective_rank(spectrum))
    return {
        "effective_rank": effective,
        "stable_rank": float(stable_rank(spectrum)),
        "energy_rank_90": float(energy_rank(spectrum, 0.9)),
        "energy_rank_99": float(energy_rank(spectrum, 0.99)),
        "utilization": effective / r if r else 0.0,
    }


def common_energy_rank(spectra: Sequence[Tensor], share: float) -> int:
    """The least r at which nine of ten adapters keep a share of their own energy.

    Each adapter counts once, however large its update is: neither one loud adapter nor one of unusual rank decides for
    the others, as it would in the energy of all of them together.

    Args:
        spectra: Of each adapter, (n,), descending; lengths may differ.
        share: In (0, 1].

    Returns:
        The rank; 0 if there is no energy, or no adapter.
    """
    ranks = sorted(int(energy_rank(spectrum, share)) for spectrum in spectra if spectrum.any())
    return ranks[math.ceil(MOST * len(ranks)) - 1] if ranks else 0
