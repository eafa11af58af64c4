"""The score test of a mean of numbers with a known limit, which keeps its error rate where few examples change."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

ROUNDING = 1e-12  # relative to the limit
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreTest:
    """Tests the mean of differences of examples that have a known limit.

    Few examples change when a model is changed little, and if none of 24 does, one in ten might still among all there
    are. The score test takes the variance that there would be if the bound was true: that of the most likely
    distribution with that mean on the observed differences and the largest possible loss. It keeps its error rate
    where a t test has up to ten times as many errors. For hits, whose differences are -1, 0 and 1, it is the test of
    Tango.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17; Owen 1988, "Empirical likelihood ratio confidence intervals for a
    single functional", Biometrika 75, for the most likely distribution with a given mean.

    Attributes:
        values: shape (values,), float64, the differences that occur, ascending.
        shares: shape (values,), float64, of the examples that have each.
        examples: Their number.
        limit: The largest possible absolute difference of an example.
    """

    values: Array
    shares: Array
    examples: int
    limit: float = 1.0

    @property
    def mean(self) -> float:
        """The observed mean."""
        return float(self.values @ self.shares)

    @property
    def reversed(self) -> "ScoreTest":
        """The same of differences with the other sign."""
        return ScoreTest(-self.values[::-1], self.shares[::-1], self.examples, self.limit)

    def score(self, difference: float) -> float:
        """How many standard errors the observed mean is above an assumed one.

        Args:
            difference: The assumed mean.

        Returns:
            About standard normal if the assumption is true; infinite if it is impossible.
        """
        distance = self.mean - difference
        if abs(distance) <= ROUNDING * self.limit:
            return 0.0
        sign = math.copysign(1.0, distance)
        variance = _likely_variance(sign * self.values, self.shares, sign * difference, self.limit)
        return sign * math.inf if variance <= 0 else distance * math.sqrt(self.examples / variance)

    def p_value_above(self, bound: float) -> float:
        """The one-sided p value of "the mean is at most `bound`"."""
        return float(ndtr(-self.score(bound)))

    def p_value_below(self, bound: float) -> float:
        """The one-sided p value of "the mean is at least `bound`"."""
        return float(ndtr(self.score(bound)))

    def low_end(self, confidence: float) -> float:
        """The largest mean that the observed one is proven to be above.

        Args:
            confidence: One-sided, in (0.5, 1).
        """
        return self._end(-self.limit * (1 - ROUNDING), float(ndtri(confidence)))

    def high_end(self, confidence: float) -> float:
        """The smallest mean that the observed one is proven to be below.

        Args:
            confidence: One-sided, in (0.5, 1).
        """
        return self._end(self.limit * (1 - ROUNDING), -float(ndtri(confidence)))

    def _end(self, limit: float, target: float) -> float:
        """Where the score has a value, between the observed mean and a limit."""
        if (self.score(limit) - target) * (self.score(self.mean) - target) >= 0:  # all examples are gains, or losses
            return limit
        return float(brentq(lambda mean: self.score(mean) - target, *sorted((self.mean, limit))))

    def needed_examples(self, bound: float, true: float, error_rate: float, power: float) -> int:
        """How many examples of this kind prove that the mean is above a bound.

        Args:
            bound: Below the true mean.
            true: The true mean; the variances are those observed, and expected at the bound.
            error_rate: Of the test.
            power: With which probability.
        """
        at_bound = _likely_variance(self.values, self.shares, bound, self.limit) if bound < self.mean else 0.0
        observed = float(self.shares @ (self.values - self.mean) ** 2)
        errors = float(ndtri(1 - error_rate)) * math.sqrt(max(at_bound, observed))
        return math.ceil(((errors + float(ndtri(power)) * math.sqrt(observed)) / (true - bound)) ** 2)


def score_test(differences: Array, limit: float) -> ScoreTest:
    """Counts the differences of examples.

    Args:
        differences: shape (examples,), float64, finite; at least one.
        limit: The largest possible absolute difference of an example.
    """
    values, counts = np.unique(differences, return_counts=True)
    return ScoreTest(values, counts / len(differences), len(differences), limit)


def _likely_variance(values: Array, shares: Array, mean: float, limit: float) -> float:
    """The variance of the most likely distribution with a mean below the observed one; 0 if there is none."""
    lowest = limit + mean  # the distance of the largest possible loss from the mean
    if lowest <= 0:
        return 0.0
    distances, above_lowest = values - mean, values + limit
    with np.errstate(divide="ignore", invalid="ignore"):
        likely = np.where(shares > 0, shares * lowest / above_lowest, 0.0)
    unseen = 1 - float(likely.sum())
    if unseen >= 0:
        return float(likely @ distances**2) + unseen * lowest**2
    most = (1 - ROUNDING) / -float(distances.min())
    slope = float(brentq(lambda slope: float(shares @ (distances / (1 + slope * distances))), 0.0, most))
    return float((shares / (1 + slope * distances)) @ distances**2)
