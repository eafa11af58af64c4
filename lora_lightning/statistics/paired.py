"""Paired differences between two configurations: which part of them is chance, over seeds and test examples alike.

D[s, i] is configuration minus reference with seed s on test example i, signed so that larger is better. A two-way
random-effects model without replication splits its variance into seeds, examples and the rest. Its interval counts
uncertainty of all three, and an interval over the seeds' means alone is checked beside it: the wider one is reported.
Where both are too narrow, since few answers differ, the score test of the examples' means counts as a third.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from lora_lightning.statistics.jackknife import CONFIDENCE, Interval
from lora_lightning.statistics.score_test import ScoreTest, score_test

ROUNDING = 1e-12  # differences that differ by less, relative to the size of the values, are equal
IDENTICAL = "identical on this test set"
EQUAL_SEEDS = "equal values of seeds, which do not show that the answers are equal"
ONE_SEED = "one seed shows no variation between seeds: at least 2 are needed for an interval"
NO_VARIANCE = "all differences are equal, so there is no variance to judge by"
Estimate = tuple[NDArray[np.float64], NDArray[np.float64]]  # standard error of the mean, degrees of freedom


@dataclass(frozen=True)
class VarianceComponents:
    """Where the variance of a paired difference comes from.

    Attributes:
        seeds: Variance between seeds, sigma_s^2, in squared units of the metric.
        examples: Variance between test examples that all seeds share, sigma_e^2.
        rest: Variance that neither explains, sigma_r^2.
    """

    seeds: float
    examples: float
    rest: float

    def of_mean(self, seeds: int, examples: int) -> dict[str, float]:
        """Splits the variance of the mean difference.

        Args:
            seeds: Number of seeds.
            examples: Number of test examples.

        Returns:
            The variances of the mean that seeds, examples and the rest cause.
        """
        rest = self.rest / (seeds * examples)
        return {"seeds": self.seeds / seeds, "examples": self.examples / examples, "rest": rest}

    def shares(self, seeds: int, examples: int) -> dict[str, float]:
        """Splits the variance of the mean difference into shares.

        Args:
            seeds: Number of seeds.
            examples: Number of test examples.

        Returns:
            Numbers in [0, 1] that sum to 1; zeros without variance.
        """
        parts = self.of_mean(seeds, examples)
        total = sum(parts.values())
        return {name: part / total if total > 0 else 0.0 for name, part in parts.items()}


@dataclass(frozen=True)
class PairedDifference:
    """The mean paired difference and how sure it is.

    Attributes:
        interval: Mean difference over seeds and examples with its 95 % interval, in units of the metric.
        seeds: Number of paired seeds.
        examples: Number of test examples; 0 if only seeds are compared.
        estimates: Standard errors of the mean with their degrees of freedom: of the two-way model (unless only seeds
            are compared), and of the seeds' means.
        components: Where the variance comes from; `None` without an interval.
        note: Why there is no interval, or `"identical on this test set"`; otherwise empty.
        limit: The largest possible absolute difference of an example, if it is known and all outcomes are equal.
        failures: Which runs of the configuration failed, such as `"3 of 6 runs of r = 8 failed or have no result"`.
            Those that are left may be its good ones, so nothing is proven in its favor; empty if none failed.
        failures_of_other: The same of the one that it is compared with.
        score_test: Of the means of examples over seeds, if they have a known limit; not part of JSON.
    """

    interval: Interval
    seeds: int
    examples: int
    estimates: tuple[tuple[float, float], ...] = ()
    components: VarianceComponents | None = None
    note: str = ""
    limit: float | None = None
    failures: str = ""
    failures_of_other: str = ""
    score_test: ScoreTest | None = field(default=None, repr=False, compare=False)

    @property
    def identical(self) -> bool:
        """Whether all outcomes are equal."""
        return self.note == IDENTICAL

    @property
    def reversed(self) -> "PairedDifference":
        """The same of the other one, compared with this."""
        interval = Interval(-self.interval.value, -self.interval.high, -self.interval.low)
        test = None if self.score_test is None else self.score_test.reversed
        own, other = self.failures, self.failures_of_other
        return replace(self, interval=interval, score_test=test, failures=other, failures_of_other=own)

    @property
    def is_tested(self) -> bool:
        """Whether p values are those of a test, and not 1 for want of one, such as with one seed."""
        return self.identical or bool(self.estimates)

    @property
    def can_differ(self) -> bool:
        """Whether a test could find a difference at all, in either direction; not if runs of both sides failed."""
        return self.is_tested and not (self.failures and self.failures_of_other)

    @property
    def covered(self) -> Interval:
        """The interval, with all that equal outcomes or failed runs do not rule out: what a claim is judged by."""
        far = self.not_ruled_out(1 - CONFIDENCE) if self.identical else 0.0
        below, above = (math.inf if failures else far for failures in (self.failures, self.failures_of_other))
        return Interval(self.interval.value, self.interval.low - below, self.interval.high + above)

    def not_ruled_out(self, error_rate: float) -> float:
        """The difference that equal outcomes of so many examples rule out.

        Args:
            error_rate: In (0, 1).

        Returns:
            A mean difference of which all these examples show nothing with that probability, in units of the metric;
            infinite if an example has no known limit.
        """
        return math.inf if self.limit is None else self.limit * (1 - error_rate ** (1 / self.examples))

    def p_value_above(self, bound: float) -> float:
        """Tests whether the mean difference is above a bound.

        Args:
            bound: Such as minus the margin, in units of the metric.

        Returns:
            The one-sided p value of "the mean is at most `bound`", the largest of both estimates' and the score test's;
            1 without an interval, or if runs of the configuration failed.
        """
        if self.failures:
            return 1.0
        if self.identical:
            return self._chance_of_equality(-bound)
        if not self.estimates:
            return 1.0
        p_values = [float(stdtr(df, (bound - self.interval.value) / error)) for error, df in self.usable_estimates]
        return max(*p_values, self.score_test.p_value_above(bound) if self.score_test else 0.0)

    def p_value_below(self, bound: float) -> float:
        """Tests whether the mean difference is below a bound.

        Args:
            bound: In units of the metric.

        Returns:
            The one-sided p value of "the mean is at least `bound`"; 1 without an interval, or if runs of the one that
            it is compared with failed.
        """
        if self.failures_of_other:
            return 1.0
        if self.identical:
            return self._chance_of_equality(bound)
        if not self.estimates:
            return 1.0
        p_values = [float(stdtr(df, (self.interval.value - bound) / error)) for error, df in self.usable_estimates]
        return max(*p_values, self.score_test.p_value_below(bound) if self.score_test else 0.0)

    @property
    def p_value(self) -> float:
        """The two-sided p value of "the mean difference is 0"; 1 without an interval."""
        return min(1.0, 2 * min(self.p_value_above(0.0), self.p_value_below(0.0)))

    def lower_bound(self, confidence: float = CONFIDENCE) -> float:
        """Computes the one-sided lower bound of the mean difference.

        Args:
            confidence: In (0, 1).

        Returns:
            The bound, in units of the metric; NaN without an interval.
        """
        if self.identical:
            return -self.not_ruled_out(1 - confidence)
        if not self.estimates:
            return self.interval.low
        half = max(float(stdtrit(df, confidence)) * error for error, df in self.usable_estimates)
        low = self.interval.value - half
        if self.score_test is None or self.score_test.p_value_above(low) <= 1 - confidence:
            return low
        return self.score_test.low_end(confidence)

    def _chance_of_equality(self, difference: float) -> float:
        """At most the probability that no example shows a mean difference: a share of them as large as it, or more."""
        if self.limit is None or difference <= 0:
            return 1.0
        return max(0.0, 1 - difference / self.limit) ** self.examples

    @property
    def usable_estimates(self) -> list[tuple[float, float]]:
        """The estimates without those that found no variance by chance, such as equal means of seeds."""
        return [(error, df) for error, df in self.estimates if error > 0]


def mean_squares(
    differences: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Splits the variation of paired differences, as a two-way analysis of variance without replication does.

    Args:
        differences: shape (..., seeds, examples), floating: at least 2 seeds and 2 examples.

    Returns:
        Mean squares of seeds, examples and the rest, each of shape (...).
    """
    seeds, examples = differences.shape[-2:]
    by_seed, by_example = differences.mean(-1), differences.mean(-2)
    mean = by_seed.mean(-1)
    of_seeds = examples * np.square(by_seed - mean[..., None]).sum(-1)
    of_examples = seeds * np.square(by_example - mean[..., None]).sum(-1)
    total = np.square(differences - mean[..., None, None]).sum((-2, -1))
    rest = np.maximum(total - of_seeds - of_examples, 0.0)
    return of_seeds / (seeds - 1), of_examples / (examples - 1), rest / ((seeds - 1) * (examples - 1))


def two_way_estimate(differences: NDArray[np.float64]) -> Estimate:
    """Estimates the standard error of the mean over seeds and examples by the method of moments.

    Var(mean) = (MS_s + MS_e - MS_r) / (S N), at least MS_s / (S N); degrees of freedom after Satterthwaite 1946 from
    all three mean squares, at least those of the seeds or of the examples alone: his formula is for sums, and would
    leave next to none of a difference, with a t interval wider than anything. If the variance is 0 by chance although
    differences vary, the rest alone is counted.

    Args:
        differences: shape (..., seeds, examples), floating: at least 2 seeds and 2 examples.

    Returns:
        Standard errors and degrees of freedom, each of shape (...).
    """
    seeds, examples = differences.shape[-2:]
    of_seeds, of_examples, rest = mean_squares(differences)
    total = np.maximum(of_seeds + of_examples - rest, of_seeds)
    canceled = total <= 1e-9 * (of_seeds + of_examples + rest)
    of_rest = (seeds - 1) * (examples - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / (of_seeds**2 / (seeds - 1) + of_examples**2 / (examples - 1) + rest**2 / of_rest)
    freedom = np.maximum(freedom, min(seeds, examples) - 1)
    total, freedom = np.where(canceled, rest, total), np.where(canceled, of_rest, freedom)
    return np.sqrt(total / (seeds * examples)), freedom


def seeds_estimate(means: NDArray[np.float64]) -> Estimate:
    """Estimates the standard error of the mean from the seeds' means alone.

    Args:
        means: shape (..., seeds), floating: at least 2 seeds.

    Returns:
        Standard errors and degrees of freedom, each of shape (...).
    """
    seeds = means.shape[-1]
    errors = means.std(-1, ddof=1) / np.sqrt(seeds)
    return errors, np.full_like(errors, seeds - 1)


def variance_components(differences: NDArray[np.float64]) -> VarianceComponents:
    """Estimates where the variance comes from; negative estimates are 0.

    Args:
        differences: shape (seeds, examples), floating: at least 2 seeds; with one column only seeds are compared.

    Returns:
        The three variances.
    """
    seeds, examples = differences.shape
    if examples == 1:
        return VarianceComponents(float(differences.var(ddof=1)), 0.0, 0.0)
    of_seeds, of_examples, rest = (float(each) for each in mean_squares(differences))
    return VarianceComponents(max(0.0, of_seeds - rest) / examples, max(0.0, of_examples - rest) / seeds, rest)


def paired_difference(
    differences: NDArray[np.float64], limit: float | None = None, size: float = 0.0
) -> PairedDifference:
    """Estimates the mean paired difference over seeds and test examples, with a 95 % interval.

    Args:
        differences: shape (seeds, examples), float64, finite; shape (seeds, 1) if the metric is no mean over examples.
        limit: The largest possible absolute difference of an example, such as 1 for hits; `None` if it is not known.
        size: The largest absolute value whose differences these are: differences vary by its rounding, too, which is no
            variance to judge by.

    Returns:
        The wider of the two-way t interval and the t interval over the seeds' means, and of examples with a known limit
        at least that of the score test; without one if there is a single seed, or if all differences are equal. Only of
        examples without any difference it is from 0 to 0.

    Raises:
        ValueError: If there is no difference, or one that is not finite.
    """
    if differences.ndim != 2 or differences.size == 0 or not np.isfinite(differences).all():  # noqa: PLR2004
        msg = f"differences must be finite and of shape (seeds, examples), not of shape {differences.shape}"
        raise ValueError(msg)
    seeds, columns = differences.shape
    examples = columns if columns > 1 else 0
    mean = float(differences.mean())
    nothing = float("nan")
    if seeds == 1:
        return PairedDifference(Interval(mean, nothing, nothing), seeds, examples, note=ONE_SEED)
    if not differences.any():
        if not examples:
            return PairedDifference(Interval(0.0, nothing, nothing), seeds, examples, note=EQUAL_SEEDS)
        return PairedDifference(Interval(0.0, 0.0, 0.0), seeds, examples, note=IDENTICAL, limit=limit)
    if np.ptp(differences) <= ROUNDING * max(size, float(np.abs(differences).max())):
        return PairedDifference(Interval(mean, nothing, nothing), seeds, examples, note=NO_VARIANCE)
    found = ([two_way_estimate(differences)] if examples else []) + [seeds_estimate(differences.mean(axis=1))]
    estimates = tuple((float(error), float(df)) for error, df in found)
    half = max(float(stdtrit(df, (1 + CONFIDENCE) / 2)) * error for error, df in estimates if error > 0)
    test = score_test(differences.mean(axis=0), limit) if examples and limit is not None else None
    interval = _at_least(Interval(mean, mean - half, mean + half), test)
    components = variance_components(differences)
    return PairedDifference(interval, seeds, examples, estimates, components, score_test=test)


def _at_least(interval: Interval, test: ScoreTest | None) -> Interval:
    """An interval that is no narrower than that of the score test, whose ends are computed where they matter only."""
    if test is None:
        return interval
    low, high, side = interval.low, interval.high, (1 + CONFIDENCE) / 2
    low = test.low_end(side) if test.p_value_above(low) > 1 - side else low
    high = test.high_end(side) if test.p_value_below(high) > 1 - side else high
    return Interval(interval.value, low, high)
