"""Norms of an adapter: its factors, their gradients, and dW relative to the frozen weight."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_lightning.analysis.spectrum import delta_core, in_float64
from lora_lightning.analysis.threads import map_in_threads
from lora_lightning.lora.delta import AdapterDelta, full_tensor


@dataclass(frozen=True)
class Moments:
    """Sums over the entries of one or several matrices.

    Attributes:
        entries: How many there are.
        total: Their sum.
        energy: The sum of their squares.
    """

    entries: int
    total: float
    energy: float

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(self.energy)

    @property
    def mean(self) -> float:
        """Mean of the entries; 0 without any."""
        return self.total / self.entries if self.entries else 0.0

    @property
    def std(self) -> float:
        """Standard deviation of the entries, of the population; 0 without any."""
        variance = self.energy / self.entries - self.mean**2 if self.entries else 0.0
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both together."""
        return Moments(self.entries + other.entries, self.total + other.total, self.energy + other.energy)


def moments(matrix: Tensor) -> Moments:
    """Sums over a matrix, in float64.

    Args:
        matrix: Any shape, floating dtype.

    Returns:
        Its moments.
    """
    exact = in_float64(matrix).flatten()
    total, energy = torch.stack([exact.sum(), exact.dot(exact)]).tolist()
    return Moments(exact.numel(), total, energy)


def delta_norms(deltas: Sequence[AdapterDelta]) -> list[float]:
    """||dW||_F of several updates, from the cores of their factors.

    Args:
        deltas: The updates; shapes may differ.

    Returns:
        The norm of each; 0 for a zero update.
    """
    return [float(torch.linalg.vector_norm(core)) for core in map_in_threads(delta_core, deltas)]


def base_norm(weight: Tensor) -> float:
    """||W||_F of a frozen weight.

    Args:
        weight: (out_features, in_features), floating dtype.

    Returns:
        The norm. Only the sum over the rows is in float64: a whole weight in it would take twice its memory.
    """
    return float(torch.linalg.vector_norm(in_float64(torch.linalg.vector_norm(weight, dim=1))))


def gradient_norm(parameter: Tensor) -> Tensor | None:
    """Frobenius norm of a parameter's gradient, cheap enough for every step.

    Args:
        parameter: A factor. Under FSDP2 every process has to call this: the norms of the shards are gathered.

    Returns:
        float32 scalar, on the parameter's device so that nothing waits for it; `None` without a gradient.
    """
    if parameter.grad is None:
        return None
    return full_tensor(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))


def layer_norms(a: Moments, b: Moments, update_norm: float, weight_norm: float) -> dict[str, float]:
    """The numbers of one layer, or of several together.

    Args:
        a: Of A as it is stored.
        b: Of B as it is stored.
        update_norm: ||dW||_F.
        weight_norm: ||W||_F of the frozen weight.

    Returns:
        By name: norm, mean and standard deviation of A and B, `delta_norm`, and `relative_delta_norm`, which is
        ||dW|| / ||W||, NaN where W = 0.
    """
    return {
        "A_norm": a.norm,
        "A_mean": a.mean,
        "A_std": a.std,
        "B_norm": b.norm,
        "B_mean": b.mean,
        "B_std": b.std,
        "delta_norm": update_norm,
        "relative_delta_norm": update_norm / weight_norm if weight_norm else math.nan,
    }


def root_sum_square(norms: Iterable[float]) -> float:
    """The Frobenius norm of several matrices together, from their own."""
    return math.sqrt(math.fsum(norm * norm for norm in norms))


def total_norms(
    a: Mapping[str, Moments], b: Mapping[str, Moments], update: Mapping[str, float], weight: Mapping[str, float]
) -> dict[str, float]:
    """The numbers of all layers as if they were one matrix.

    Args:
        a: Of A, by layer.
        b: Of B, by layer.
        update: ||dW||_F, by layer.
        weight: ||W||_F, by layer.

    Returns:
        The same names as `layer_norms`.
    """
    none = Moments(0, 0.0, 0.0)
    return layer_norms(
        sum(a.values(), none),
        sum(b.values(), none),
        root_sum_square(update.values()),
        root_sum_square(weight.values()),
    )
