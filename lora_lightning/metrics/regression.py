"""Metrics of predicted numbers, in float64.

torchmetrics computes them in float32: its Pearson correlation is NaN for values that are small or lie close together
(torchmetrics#3150, #1725), also because of a single far value, and loses digits around large numbers; a constant
gives NaN in one correlation and 0 in the other (torchmetrics#2920).
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pearson_correlation(predictions: Array, targets: Array) -> float:
    """Pearson's correlation coefficient.

    Args:
        predictions: (rows,), float64.
        targets: (rows,), float64.

    Returns:
        In [-1, 1]; 0 if either side is constant, as a constant correlates with nothing; NaN if a number is not finite.
    """
    if not (np.isfinite(predictions).all() and np.isfinite(targets).all()):
        return float("nan")
    if len(np.unique(predictions)) <= 1 or len(np.unique(targets)) <= 1:
        return 0.0
    return float(np.corrcoef(predictions, targets)[0, 1])


def spearman_correlation(predictions: Array, targets: Array) -> float:
    """Spearman's rank correlation coefficient; equal values share the mean of their ranks.

    Args:
        predictions: (rows,), float64.
        targets: (rows,), float64.

    Returns:
        As `pearson_correlation`, of the ranks.
    """
    if not (np.isfinite(predictions).all() and np.isfinite(targets).all()):
        return float("nan")
    return pearson_correlation(mean_ranks(predictions), mean_ranks(targets))


def mean_ranks(values: Array) -> Array:
    """Ranks from 1 for the lowest.

    Args:
        values: (rows,), float64, finite.

    Returns:
        (rows,), float64; equal values share the mean of their ranks.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def mean_squared_error(predictions: Array, targets: Array) -> float:
    """Mean of the squared differences, in the square of the targets' unit."""
    return float(np.square(predictions - targets).mean())


def mean_absolute_error(predictions: Array, targets: Array) -> float:
    """Mean of the absolute differences, in the targets' unit."""
    return float(np.abs(predictions - targets).mean())
