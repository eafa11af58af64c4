"""Two states of one model on the same examples: what is proven holds for this model, not for the way it was trained.

Only examples vary here; `paired` is about seeds and examples.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from lora_lightning.statistics.jackknife import CONFIDENCE, Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.paired import IDENTICAL, NO_VARIANCE, ROUNDING, PairedDifference
from lora_lightning.statistics.power import POWER, round_up

ONE_EXAMPLE = "a single example shows no variation between examples"
CRITICAL = float(ndtri((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class HitsDifference(PairedDifference):
    """The difference of two shares of hits, tested by the score test for paired proportions.

    Few examples change when a model is changed little, and if none of 24 does, one in ten might still among all there
    are. The score test takes the variance that there would be if the bound was true, so that it knows this; it keeps
    its error rate where a t test has up to half as many errors again.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17.

    Attributes:
        gains: Examples that only the first state gets right.
        losses: Examples that only the second state gets right.
    """

    gains: int = 0
    losses: int = 0

    def score(self, difference: float) -> float:
        """How many standard errors the observed difference is above an assumed one.

        Args:
            difference: In (-1, 1).

        Returns:
            About standard normal if the assumption is true.
        """
        n, b, c, d = self.examples, self.gains, self.losses, difference
        linear = -b - c + (2 * n - b + c) * d
        lost = (math.sqrt(max(0.0, linear**2 + 8 * n * c * d * (1 - d))) - linear) / (4 * n)
        variance = n * (2 * lost + d * (1 - d))
        distance = b - c - n * d
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    def p_value_above(self, bound: float) -> float:
        """The one-sided p value of "the difference is at most `bound`"."""
        return float(ndtr(-self.score(bound)))

    def p_value_below(self, bound: float) -> float:
        """The one-sided p value of "the difference is at least `bound`"."""
        return float(ndtr(self.score(bound)))


def example_difference(differences: NDArray[np.float64], *, are_hits: bool = False) -> PairedDifference:
    """Estimates the mean difference of two states of one model over examples, with a 95 % interval.

    Args:
        differences: shape (examples,), float64, finite, signed so that larger is better.
        are_hits: Whether they are differences of 0 and 1, which the score test compares; a t test compares others.

    Returns:
        The mean difference and its interval; without one for fewer than two examples, or if all differences are equal
        and no hits.
    """
    examples = len(differences)
    mean = float(differences.mean()) if examples else math.nan
    nothing = Interval(mean, math.nan, math.nan)
    if examples < 2:  # noqa: PLR2004
        return PairedDifference(nothing, 1, examples, note=ONE_EXAMPLE)
    if are_hits:
        return _hits_difference(differences)
    if not differences.any():
        return PairedDifference(Interval(0.0, 0.0, 0.0), 1, examples, note=IDENTICAL)
    error = float(differences.std(ddof=1) / math.sqrt(examples))
    if error <= ROUNDING * float(np.abs(differences).max()):
        return PairedDifference(nothing, 1, examples, note=NO_VARIANCE)
    half = float(stdtrit(examples - 1, (1 + CONFIDENCE) / 2)) * error
    interval = Interval(mean, mean - half, mean + half)
    return PairedDifference(interval, 1, examples, estimates=((error, float(examples - 1)),))


def _hits_difference(differences: NDArray[np.float64]) -> HitsDifference:
    examples, gains, losses = len(differences), int((differences > 0).sum()), int((differences < 0).sum())
    mean = float(differences.mean())
    without = HitsDifference(Interval(mean, math.nan, math.nan), 1, examples, gains=gains, losses=losses)
    low, high = _end(without, -1 + ROUNDING, CRITICAL), _end(without, 1 - ROUNDING, -CRITICAL)
    error = (high - low) / (2 * CRITICAL)
    return replace(without, interval=Interval(mean, low, high), estimates=((error, math.inf),))


def _end(found: HitsDifference, limit: float, target: float) -> float:
    """Where the score has a value, between the observed difference and a limit."""
    mean = found.interval.value
    if (found.score(limit) - target) * (found.score(mean) - target) >= 0:  # all examples are gains, or losses
        return limit
    return float(brentq(lambda d: found.score(d) - target, *sorted((mean, limit))))


def missing_examples(difference: PairedDifference, margin: float) -> int | None:
    """Computes how many examples a proof takes with a power of 80 %, if the observed difference is the true one.

    Args:
        difference: From `example_difference`.
        margin: Above 0, in units of the outcomes.

    Returns:
        Their number, two significant digits; `None` without an interval, or if the difference is beyond the margin.
    """
    distance = margin + min(0.0, difference.interval.value)
    if not difference.estimates or distance <= 0:
        return None
    error, _ = difference.estimates[0]
    needed = difference.examples * (error * float(ndtri(1 - ERROR_RATE) + ndtri(POWER)) / distance) ** 2
    return round_up(math.ceil(needed))
