"""Two states of one model on the same examples: what is proven holds for this model, not for the way it was trained.

Only examples vary here; `paired` is about seeds and examples.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, stdtr, stdtrit

from lora_lightning.statistics.jackknife import CONFIDENCE, Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.paired import NO_VARIANCE, ROUNDING, PairedDifference
from lora_lightning.statistics.power import POWER, round_up
from lora_lightning.statistics.score_test import score_test

ONE_EXAMPLE = "a single example shows no variation between examples"
NO_DIFFERENCE = "no example differs, which on some examples does not show that none would on more"
CRITICAL = float(ndtri((1 + CONFIDENCE) / 2))
UNSEEN = 2.0  # times the largest observed difference: what one more example is taken to lose
Array = NDArray[np.float64]


@dataclass(frozen=True)
class BoundedDifference(PairedDifference):
    """The mean of differences that have a known limit, tested by the score test alone."""

    def p_value_above(self, bound: float) -> float:
        """The one-sided p value of "the difference is at most `bound`"."""
        return 1.0 if self.score_test is None else self.score_test.p_value_above(bound)

    def p_value_below(self, bound: float) -> float:
        """The one-sided p value of "the difference is at least `bound`"."""
        return 1.0 if self.score_test is None else self.score_test.p_value_below(bound)


@dataclass(frozen=True)
class UnlimitedDifference(PairedDifference):
    """The mean of differences without a known limit, tested as if one more example lost twice the largest of them.

    A model that is changed a little loses much on rare examples, which a few tens of documents may not have among
    them; then both mean and variance are too small, and a t test proves too much. In simulations at the margin, with
    10 to 200 examples and lognormal losses (sigma 0.5, 1 and 1.5), its error is 6 to 33 % instead of 5 %, and this
    test's 0.2 to 12 %, above 5 % for sigma 1.5 alone. Losses of which no example at all is among those measured show
    in no test.

    Attributes:
        deviation: Standard deviation of the observed differences, with n - 1.
        unseen: The difference of the one more example, negative.
    """

    deviation: float = 0.0
    unseen: float = 0.0

    def p_value_above(self, bound: float) -> float:
        """The one-sided p value of "the difference is at most `bound`", with the unseen example."""
        mean, error = self._with_unseen(self.examples)
        return float(stdtr(self.examples, (bound - mean) / error))

    def low_end(self) -> float:
        """The lower end of the 95 % interval, with the unseen example."""
        mean, error = self._with_unseen(self.examples)
        return mean - float(stdtrit(self.examples, (1 + CONFIDENCE) / 2)) * error

    def missing(self, margin: float) -> int:
        """With how many examples of this kind a proof has a power of 80 %, if the observed difference is the true one.

        Args:
            margin: Above minus the observed difference.
        """

        def surplus(examples: float) -> float:
            mean, error = self._with_unseen(examples)
            return mean + margin - error * float(ndtri(1 - ERROR_RATE) + ndtri(POWER))

        if surplus(2.0) >= 0:
            return 2
        most = 2.0 * self.examples
        while surplus(most) < 0:
            most *= 2
        return math.ceil(float(brentq(surplus, 2.0, most)))

    def _with_unseen(self, examples: float) -> tuple[float, float]:
        """Mean and standard error of so many examples with the observed mean and deviation, and the unseen one."""
        mean, deviation = self.interval.value, self.deviation
        squares = (examples - 1) * deviation**2 + examples / (examples + 1) * (mean - self.unseen) ** 2
        return (examples * mean + self.unseen) / (examples + 1), math.sqrt(squares / examples / (examples + 1))


def example_difference(differences: Array, limit: float | None = None) -> PairedDifference:
    """Estimates the mean difference of two states of one model over examples, with a 95 % interval.

    Args:
        differences: shape (examples,), float64, finite, signed so that larger is better.
        limit: The largest possible absolute difference of an example, such as 1 for hits, which the score test needs;
            `None` for differences without bounds, which vary on every example.

    Returns:
        The mean difference and its interval; without one for fewer than two examples, or if all differences without
        bounds are equal.
    """
    examples = len(differences)
    mean = float(differences.mean()) if examples else math.nan
    nothing = Interval(mean, math.nan, math.nan)
    if examples < 2:  # noqa: PLR2004
        return PairedDifference(nothing, 1, examples, note=ONE_EXAMPLE)
    if limit is not None:
        return _bounded_difference(differences, max(limit, float(np.abs(differences).max())))
    if not differences.any():
        return PairedDifference(nothing, 1, examples, note=NO_DIFFERENCE)
    error = float(differences.std(ddof=1) / math.sqrt(examples))
    if error <= ROUNDING * float(np.abs(differences).max()):
        return PairedDifference(nothing, 1, examples, note=NO_VARIANCE)
    high = mean + float(stdtrit(examples - 1, (1 + CONFIDENCE) / 2)) * error
    found = UnlimitedDifference(
        Interval(mean, math.nan, high),
        1,
        examples,
        estimates=((error, float(examples - 1)),),
        deviation=float(differences.std(ddof=1)),
        unseen=-UNSEEN * float(np.abs(differences).max()),
    )
    return replace(found, interval=Interval(mean, found.low_end(), high))


def _bounded_difference(differences: Array, limit: float) -> BoundedDifference:
    test = score_test(differences, limit)
    low, high = (end((1 + CONFIDENCE) / 2) for end in (test.low_end, test.high_end))
    estimates = (((high - low) / (2 * CRITICAL), math.inf),)
    interval = Interval(test.mean, low, high)
    return BoundedDifference(interval, 1, test.examples, estimates=estimates, score_test=test)


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
    if isinstance(difference, UnlimitedDifference):
        return round_up(difference.missing(margin))
    error, _ = difference.estimates[0]
    needed = difference.examples * (error * float(ndtri(1 - ERROR_RATE) + ndtri(POWER)) / distance) ** 2
    return round_up(math.ceil(needed))
