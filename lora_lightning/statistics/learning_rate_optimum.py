"""Where between the learning rates that were tried the best one lies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEIGHBORS = 2  # rates on each side of the best one that the parabola is fitted to


@dataclass(frozen=True)
class RateOptimum:
    """The best learning rate of a configuration.

    Attributes:
        log_rate: Its natural logarithm.
        at_edge: Whether the best rate that was tried is the smallest or the largest one, so that a better one may lie
            beyond.
    """

    log_rate: float
    at_edge: bool


def rate_optimum(scores: Mapping[float, float]) -> RateOptimum:
    """Finds the best learning rate by a parabola in its logarithm.

    The parabola is fitted by least squares to the best rate that was tried and up to two on each side of it, and its
    vertex counts, at most as far away as the neighbors of the best rate. If fewer than three of them have a score, or
    the parabola has no maximum, the best rate that was tried counts.

    Args:
        scores: Score by learning rate, larger is better; -inf for a rate whose runs failed. At least one is finite.

    Returns:
        The optimum.
    """
    rates = sorted(scores)
    logs = np.log(np.asarray(rates, dtype=np.float64))
    values = np.asarray([scores[rate] for rate in rates], dtype=np.float64)
    best = int(values.argmax())
    if best in {0, len(rates) - 1}:
        return RateOptimum(float(logs[best]), at_edge=True)
    near = slice(max(0, best - NEIGHBORS), best + NEIGHBORS + 1)
    finite = np.isfinite(values[near])
    if finite.sum() < 3:  # noqa: PLR2004  # points of a parabola
        return RateOptimum(float(logs[best]), at_edge=False)
    curvature, slope, _ = np.polyfit((logs[near] - logs[best])[finite], values[near][finite], 2)
    if curvature >= 0:
        return RateOptimum(float(logs[best]), at_edge=False)
    vertex = logs[best] - slope / (2 * curvature)
    return RateOptimum(float(np.clip(vertex, logs[best - 1], logs[best + 1])), at_edge=False)


def mean_scores(
    tried: Mapping[float, Mapping[int, float]], seeds: list[int], *, higher_is_better: bool
) -> dict[float, float]:
    """Averages the validation metric of each learning rate over some seeds.

    Args:
        tried: Validation metric by learning rate and seed.
        seeds: The seeds to average over.
        higher_is_better: Whether larger values are better.

    Returns:
        Score by learning rate, larger is better; -inf for a rate that lacks one of the seeds, because its run failed.
    """
    sign = 1.0 if higher_is_better else -1.0
    return {
        rate: float(np.mean([sign * values[seed] for seed in seeds])) if set(seeds) <= set(values) else -math.inf
        for rate, values in tried.items()
    }


def log_log_slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The exponent b of y = a x^b, by least squares between logarithms.

    Args:
        x: (n,), float64, above 0: at least two different numbers.
        y: (n,), float64, above 0.

    Returns:
        The exponent.
    """
    centered = np.log(x) - np.log(x).mean()
    return float(centered @ np.log(y) / (centered @ centered))
