"""What quantizing does to a frozen weight, and how much of that an adapter undoes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_lightning.analysis.spectrum import in_float64
from lora_lightning.lora.delta import AdapterDelta

FAR = 4.0  # standard deviations; of normally distributed weights 0.006 % are farther away


@dataclass(frozen=True)
class WeightShape:
    """How the entries of a weight are distributed.

    Attributes:
        excess_kurtosis: 0 for a normal distribution; above it for one with more outliers.
        outlier_share: Share of the entries that are more than 4 standard deviations from their mean, in [0, 1].
        largest: The largest distance from the mean, in standard deviations.
    """

    excess_kurtosis: float
    outlier_share: float
    largest: float


@torch.no_grad()
def weight_shape(weight: Tensor) -> WeightShape:
    """Measures the distribution of a weight's entries.

    Args:
        weight: Any shape, floating dtype.

    Returns:
        Numbers in float64; NaN for a constant weight.
    """
    entries = in_float64(weight).flatten()
    centered = entries - entries.mean()
    deviations = centered / centered.square().mean().sqrt()
    return WeightShape(
        excess_kurtosis=float(deviations.pow(4).mean() - 3),
        outlier_share=float((deviations.abs() > FAR).double().mean()),
        largest=float(deviations.abs().max()),
    )


@torch.no_grad()
def relative_error(weight: Tensor, quantized: Tensor) -> float:
    """The error of quantizing, ||W - Q(W)||_F / ||W||_F.

    Args:
        weight: W, (out_features, in_features), any floating dtype.
        quantized: Q(W), dequantized, the same shape.

    Returns:
        Dimensionless, at least 0.
    """
    difference = weight.float() - quantized.float()
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(weight.float()))


@torch.no_grad()
def canceled_share(update: AdapterDelta, error: Tensor) -> float:
    """The share of a quantization error that an update cancels: its projection, <dW, E> / ||E||_F^2.

    What the update does in directions orthogonal to E, such as learning the task, does not count. dW is not formed.

    Args:
        update: dW of the layer, in a model that computes with Q(W) + dW.
        error: E = W - Q(W), (out_features, in_features), floating dtype.

    Returns:
        Dimensionless: 1 if Q(W) + dW has W's part along E again, 0 if the update ignores the error, below 0 if it adds
        to it; NaN without an error.
    """
    a, b, e = (tensor.to(error.device, torch.float32) for tensor in (update.A, update.B, error))
    product = ((b.T @ e) * a).sum()
    return float(update.scaling * product / e.square().sum())


@torch.no_grad()
def reachable_share(error: Tensor, r: int) -> float:
    """The largest share of a quantization error that an update of rank r could cancel (Eckart & Young 1936).

    Args:
        error: E, (out_features, in_features), floating dtype.
        r: The rank, at least 1.

    Returns:
        The share of ||E||_F^2 in its r largest singular values, in [0, 1]; NaN without an error.
    """
    matrix = error.float()
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    squares = torch.linalg.eigvalsh(gram).clamp(min=0)
    return float(squares[-r:].sum() / squares.sum())
