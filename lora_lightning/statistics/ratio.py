"""A ratio of two paired means with its interval, such as the share of a loss that something buys back."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.paired import paired_difference
from lora_lightning.statistics.pairing import common_seeds, paired_tables
from lora_lightning.statistics.study_results import ConfigurationResults

MOST_DOUBLINGS = 60


def ratio_of_means(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> Interval:
    """Divides the means of two tables, and finds all ratios that the test of paired differences does not rule out.

    A ratio is inside if the mean of `parts - ratio * wholes` over seeds and examples is not told from 0.

    Source: Fieller 1954, "Some problems in interval estimation", with the two-way test in place of the t test.

    Args:
        parts: shape (seeds, examples), float64, finite; shape (seeds, 1) to compare seeds alone.
        wholes: The same shape, float64, paired with them.

    Returns:
        The ratio, dimensionless, with its 95 % interval; without ends if the mean of `wholes` is not told from 0, for
        one seed, or without any variance.
    """
    mean = float(wholes.mean())
    value = float(parts.mean() / mean) if mean else float("nan")
    without = Interval(value, float("nan"), float("nan"))
    if not mean or paired_difference(wholes).interval.contains(0.0):
        return without

    def excess(ratio: float) -> float:
        """How far the mean is beyond what chance explains; negative inside the interval."""
        found = paired_difference(parts - ratio * wholes)
        half = found.interval.high - found.interval.value
        return float("-inf") if np.isnan(half) else abs(found.interval.value) - float(half)

    around = paired_difference(parts - value * wholes)
    if around.identical:
        return Interval(value, value, value)
    width = (around.interval.high - around.interval.value) / abs(mean)
    if not width > 0:
        return without
    low, high = _end(excess, value, -width), _end(excess, value, width)
    return without if low is None or high is None else Interval(value, low, high)


def bought_back_share(
    full: ConfigurationResults, quantized: ConfigurationResults, chosen: ConfigurationResults
) -> Interval:
    """The share of a loss that is bought back, (chosen - quantized) / (full - quantized), of means.

    Args:
        full: What nothing is lost of, such as a model without quantization.
        quantized: With the loss.
        chosen: With the loss, and something that may buy it back.

    Returns:
        The share with its interval over the common seeds and the test examples; over seeds alone if the metric is no
        mean over examples. NaN without a common seed.

    Raises:
        ConfigurationError: If they were tested on different numbers of examples.
    """
    if not common_seeds(full, quantized, chosen):
        return Interval(float("nan"), float("nan"), float("nan"))
    whole, without, part = paired_tables(full, quantized, chosen)
    return ratio_of_means(part - without, whole - without)


def _end(excess: Callable[[float], float], value: float, step: float) -> float | None:
    for _ in range(MOST_DOUBLINGS):
        outside = value + step
        if excess(outside) > 0:
            try:
                return float(brentq(excess, value, outside, xtol=1e-12, rtol=1e-9))
            except RuntimeError:  # no convergence: the ends are not known
                return None
        step *= 2
    return None
