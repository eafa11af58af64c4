"""Whether numbers grow as a power of others, or leave the straight line between logarithms."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc


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


def neighboring_exponents(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """The exponents between neighbors, which are all equal for a power law.

    Args:
        x: (n,), float64, above 0.
        y: (n,), float64, above 0; of equal x the geometric mean counts.

    Returns:
        Two neighboring x and the exponent between them, ascending.
    """
    means = [(float(each), float(np.log(y[x == each]).mean())) for each in np.unique(x)]
    return [
        (low, high, (second - first) / float(np.log(high / low))) for (low, first), (high, second) in pairwise(means)
    ]


def lack_of_fit(x: NDArray[np.float64], y: NDArray[np.float64], without_one: NDArray[np.float64]) -> float:
    """Tests whether numbers leave the power law that fits them best by more than the seeds explain.

    An F test between logarithms (Draper & Smith 1998, "Applied Regression Analysis", section 2.1): the squared
    distances from the line, against what is left of jackknife pseudo-values after the means of seeds and of x, since
    a seed that raises all numbers equally does not bend the line.

    Args:
        x: (n,), float64, above 0: at least two different numbers.
        y: (n,), float64, above 0: from all seeds.
        without_one: (seeds, n), float64, above 0: the same without each seed in turn.

    Returns:
        The p value of "a power law": 1 for fewer than three numbers or two seeds, or if a number is not finite.
    """
    seeds, n = without_one.shape
    logs, center = np.log(y), np.log(x) - np.log(x).mean()
    if seeds < 2 or n < 3 or not np.isfinite(logs).all():  # noqa: PLR2004  # two points lie on a line
        return 1.0
    distances = logs - logs.mean() - log_log_slope(x, y) * center
    pseudo_values = seeds * logs - (seeds - 1) * np.log(without_one)
    rest = pseudo_values - pseudo_values.mean(0) - pseudo_values.mean(1, keepdims=True) + pseudo_values.mean()
    of_line = seeds * np.square(distances).sum() / (n - 2)
    of_seeds = np.square(rest).sum() / ((n - 1) * (seeds - 1))
    if not np.isfinite(of_seeds):
        return 1.0
    return float(fdtrc(n - 2, (n - 1) * (seeds - 1), of_line / of_seeds)) if of_seeds > 0 else float(of_line == 0)
