"""The delete-one jackknife: how far a statistic of examples may be from its value for all examples there are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval.

    Attributes:
        value: The estimate.
        low: Lower end; NaN if there is no interval.
        high: Upper end; NaN if there is no interval.
    """

    value: float
    low: float
    high: float

    def contains(self, number: float) -> bool:
        """Whether a number is inside; every number is inside an interval without ends."""
        return not (number < self.low or number > self.high)

    def clipped(self, least: float, greatest: float) -> "Interval":
        """The same, with ends among the values that there can be; without ends it stays without."""
        if math.isnan(self.low):
            return self
        return Interval(self.value, max(self.low, least), min(self.high, greatest))

    def __str__(self) -> str:
        """Such as `0.998 (95 % interval 0.991 to 1.004)`, `0.998 (no interval)`, or `unknown`."""
        if math.isnan(self.value):
            return "unknown"
        if math.isnan(self.low):
            return f"{self.value:.4g} (no interval)"
        return f"{self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g})"


def jackknife_interval(value: float, without_one: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """An interval from the statistics of all examples but one.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", equation 11.5; Student's t with n - 1 degrees
    of freedom.

    Args:
        value: The statistic of all examples.
        without_one: (n,), float64: the statistic without each example in turn.
        confidence: In (0, 1).

    Returns:
        The interval; without ends for fewer than two examples, or if a value is not finite.
    """
    n = len(without_one)
    if n < 2 or not np.isfinite([value, *without_one]).all():  # noqa: PLR2004  # one example has no variance
        return Interval(value, float("nan"), float("nan"))
    variance = (n - 1) / n * np.square(without_one - without_one.mean()).sum()
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * np.sqrt(variance))
    return Interval(value, value - half, value + half)


def mean_interval(numbers: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of some numbers with the interval of Student's t, which is that of the jackknife.

    Args:
        numbers: Such as one per seed.
        confidence: In (0, 1).

    Returns:
        The interval; without ends for fewer than two numbers, NaN for none.
    """
    if not len(numbers):
        return Interval(float("nan"), float("nan"), float("nan"))
    values = np.asarray(numbers, dtype=np.float64)
    without_one = (values.sum() - values) / max(1, len(values) - 1)
    return jackknife_interval(float(values.mean()), without_one, confidence)


def weighted_means(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """A weighted mean of all examples, and without each in turn.

    Args:
        values: (n,), float64.
        weights: (n,), float64, not negative; examples of weight 0 should be left out.

    Returns:
        The mean, and (n,) means; NaN without examples.
    """
    total, weight = float((values * weights).sum()), float(weights.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(total, weight)), (total - values * weights) / (weight - weights)
