"""Where between the learning rates that were tried the best one lies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RateOptimum:
    """The best learning rate of a configuration.

    Attributes:
        log_rate: Its natural logarithm.
        at_edge: Whether the best rate that was tried is the smallest or the largest one that did not fail, so that a
            better one may lie beyond.
    """

    log_rate: float
    at_edge: bool


def rate_optimum(scores: Mapping[float, float]) -> RateOptimum:
    """Finds the best learning rate by a parabola in its logarithm.

    The parabola goes through the best rate that was tried and its two neighbors, so that its vertex lies between them;
    rates far away, where the training may fail, do not count.

    Args:
        scores: Score by learning rate, larger is better; -inf for a rate whose runs failed. At least one is finite.

    Returns:
        The optimum; the best rate that was tried if it lacks a neighbor with a score.
    """
    rates = sorted(scores)
    logs = np.log(np.asarray(rates, dtype=np.float64))
    values = np.asarray([scores[rate] for rate in rates], dtype=np.float64)
    best = int(values.argmax())
    near = slice(max(0, best - 1), best + 2)
    if np.isfinite(values[near]).sum() < 3:  # noqa: PLR2004  # the best one and two neighbors
        return RateOptimum(float(logs[best]), at_edge=True)
    curvature, slope, _ = np.polyfit(logs[near] - logs[best], values[near], 2)
    vertex = logs[best] - slope / (2 * curvature) if curvature < 0 else logs[best]  # all three may be equal
    return RateOptimum(float(vertex), at_edge=False)


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
        rate: float(np.mean([sign * values[seed] for seed in seeds])) if seeds and {*seeds} <= {*values} else -math.inf
        for rate, values in tried.items()
    }
