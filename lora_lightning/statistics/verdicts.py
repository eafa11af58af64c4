"""What a comparison says, as a verdict and in a sentence with its numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.paired import PairedDifference
from lora_lightning.statistics.power import POWER, examples_for_equality, missing_evidence, planned_power
from lora_lightning.statistics.study_results import Metric


class Verdict(StrEnum):
    """The verdict on a configuration, compared with the reference.

    Attributes:
        IDENTICAL: All outcomes are equal, of enough test examples for a proof.
        NOT_WORSE: Proven not to be worse by more than the margin.
        WORSE: Proven to be worse by more than the margin.
        UNDECIDED: Neither is proven.
        NOT_TESTED: A more expensive configuration of the fixed sequence is not proven, so the test stopped before it.
        NOT_ENOUGH_EVIDENCE: There is no interval, as with one seed, too few test examples have equal outcomes, or runs
            failed, so that those that are left may be the good ones.
    """

    IDENTICAL = "identical"
    NOT_WORSE = "not worse"
    WORSE = "worse"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"

    @property
    def proven(self) -> bool:
        """Whether the configuration may replace the reference."""
        return self in {Verdict.IDENTICAL, Verdict.NOT_WORSE}


class ClaimVerdict(StrEnum):
    """Whether data support a claim that a number lies in a range."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True)
class Comparison:
    """A configuration compared with the reference.

    Attributes:
        name: The configuration.
        difference: Configuration minus reference in the unit of the values, larger is better.
        verdict: The verdict.
        p_value: One-sided p value of "worse by the margin or more", adjusted if `test` is `"Holm"`.
        test: `"fixed sequence"` or `"Holm"`.
        missing: What would decide it, such as `"4 more seeds, if both are equally good"`; empty if decided.
        unpaired_seeds: Seeds that only one of both ran with; they are not compared.
        sentence: The verdict in plain words with its numbers.
        variance_shares: Shares of the variance of the mean difference that `seeds`, `examples` and the `rest` cause,
            which sum to 1; empty without an interval.
    """

    name: str
    difference: PairedDifference
    verdict: Verdict
    p_value: float
    test: str
    missing: str
    unpaired_seeds: tuple[int, ...]
    sentence: str
    variance_shares: Mapping[str, float]


def claim_verdict(interval: Interval, low: float = -math.inf, high: float = math.inf) -> ClaimVerdict:
    """Judges a claim by an interval.

    Args:
        interval: Of the number in question.
        low: Lower end of the claim.
        high: Upper end of the claim.

    Returns:
        PASS if the interval is inside the claim, FAIL if it is entirely outside, otherwise UNDECIDED.
    """
    if interval.low >= low and interval.high <= high:
        return ClaimVerdict.PASS
    outside = interval.high < low or interval.low > high
    return ClaimVerdict.FAIL if outside else ClaimVerdict.UNDECIDED


def shown_number(number: float, metric: Metric) -> str:
    """Formats a difference in the unit of the margin, one digit beyond the margin's first, and at least one decimal."""
    decimals = max(1, 1 - math.floor(math.log10(metric.margin)))
    return f"{round(number, decimals) + 0.0:.{decimals}f}"


def shown_difference(difference: PairedDifference, metric: Metric) -> str:
    """Formats a difference with its interval and what it is from.

    Args:
        difference: In the unit of the values.
        metric: The metric that decides.

    Returns:
        Such as `difference -0.10 points, 95 % interval -0.40 to 0.20, 5 seeds, 4,500 test examples`.
    """
    if difference.seeds == 0:
        return difference.note
    value, low, high = (
        shown_number(metric.shown_difference(number), metric)
        for number in (difference.interval.value, difference.interval.low, difference.interval.high)
    )
    size = f"{difference.seeds} seed{'s' * (difference.seeds != 1)}"
    size += f", {difference.examples:,} test examples" if difference.examples else ", compared by seed only"
    interval = "no interval" if math.isnan(difference.interval.low) else f"95 % interval {low} to {high}"
    return f"difference {value}{metric.unit}, {interval}, {size}"


def shown_margin(metric: Metric) -> str:
    """Formats the margin, such as `0.5 points`."""
    unit = metric.unit.removesuffix("s") if metric.margin == 1 and metric.unit == " points" else metric.unit
    return f"{metric.margin:g}{unit}"


def what_is_missing(difference: PairedDifference, metric: Metric, error_rate: float = ERROR_RATE) -> str:
    """Says which data would prove non-inferiority with a power of 80 %.

    The two configurations are assumed to be equal, unless the data contradict that; then the observed difference
    counts. The sentence names what is assumed.

    Args:
        difference: In the unit of the values.
        metric: The metric that decides.
        error_rate: Of the test; with Holm's correction the share of 5 % that this comparison has.

    Returns:
        Such as `4 more seeds, if both are equally good`, or why nothing would.
    """
    if difference.failures or difference.failures_of_other:
        return "the results of the runs that failed, or settings with which none fails"
    if difference.components is None:
        return _missing_variance(difference, metric, error_rate)
    margin, size = metric.stored_margin, (difference.seeds, difference.examples)
    contradicted = difference.interval.high < 0 or (
        planned_power(difference.components, margin, *size, error_rate) >= POWER
        and _least_examples(difference, margin, 0.0, error_rate) <= difference.examples
    )
    assumed = min(0.0, difference.interval.value) if contradicted else 0.0
    least = _least_examples(difference, margin, assumed, error_rate)
    missing = missing_evidence(difference.components, margin + assumed, *size, error_rate, least)
    if missing is None and assumed <= -margin:
        return "nothing of this kind: the observed difference is beyond the margin, so more data would rather refute it"
    needed = (
        "far more seeds and test examples than a study can have, or a larger margin" if missing is None else missing
    )
    if difference.interval.value <= -margin:
        return (
            "nothing of this kind if the observed difference is the true one, which is beyond the margin; "
            f"{needed} if both are equally good"
        )
    observed = f"{shown_number(metric.shown_difference(assumed), metric)}{metric.unit}"
    return f"{needed}, if {f'the true difference is the observed {observed}' if assumed else 'both are equally good'}"


def _least_examples(difference: PairedDifference, margin: float, assumed: float, error_rate: float) -> int:
    """How many examples the score test needs; 0 without one, or if the assumed difference is beyond the margin."""
    if difference.score_test is None or assumed <= -margin:
        return 0
    return difference.score_test.needed_examples(-margin, assumed, error_rate, POWER)


def _missing_variance(difference: PairedDifference, metric: Metric, error_rate: float) -> str:
    """What is missing if no difference varies."""
    if difference.seeds < 2:  # noqa: PLR2004
        return "at least 2 seeds in common"
    if not difference.identical:
        return "seeds with different results"
    if difference.limit is None:
        return f"test examples with different outcomes, since one example may change {metric.name} by any amount"
    needed = examples_for_equality(metric.stored_margin, difference.limit, error_rate) - difference.examples
    return f"{max(1, needed):,} more test example{'s' * (needed > 1)}, if their outcomes are equal, too"


def variance_sentence(difference: PairedDifference) -> str:
    """Says where the uncertainty of a difference comes from.

    Args:
        difference: A difference.

    Returns:
        Such as `Of the variance of the mean difference, 40 % comes from the choice of seeds, ...`; empty without an
        interval, or if only seeds are compared.
    """
    shares = variance_shares(difference)
    if not difference.examples or not any(shares.values()):
        return ""
    seeds, examples = round(100 * shares["seeds"]), round(100 * shares["examples"])
    return (
        f"Of the variance of this difference, {seeds} % comes from seeds, {examples} % from test examples and "
        f"{100 - seeds - examples} % from their combination."
    )


def variance_shares(difference: PairedDifference) -> dict[str, float]:
    """Splits the variance of a mean difference into shares.

    Args:
        difference: A difference.

    Returns:
        The shares of `seeds`, `examples` and the `rest`; empty without an interval.
    """
    if difference.components is None:
        return {}
    return difference.components.shares(difference.seeds, max(difference.examples, 1))


def verdict_sentence(name: str, reference: str, metric: Metric, found: Comparison) -> str:
    """Puts a verdict into a sentence.

    Args:
        name: The configuration.
        reference: The configuration that it is compared with.
        metric: The metric that decides.
        found: The comparison; its sentence is not used.

    Returns:
        A sentence with its numbers.
    """
    numbers, margin = f"({shown_difference(found.difference, metric)})", shown_margin(metric)
    bound = ""
    if found.verdict is Verdict.NOT_WORSE and found.difference.interval.low <= -metric.stored_margin:
        lowest = shown_number(metric.shown_difference(found.difference.lower_bound()), metric)
        bound = f"; the one-sided test at 5 % decides, whose bound is {lowest}"
    if found.verdict is Verdict.WORSE and found.difference.interval.high >= -metric.stored_margin:
        highest = shown_number(metric.shown_difference(-found.difference.reversed.lower_bound()), metric)
        bound = f"; the one-sided test at 5 % decides, whose bound is {highest}"
    if found.verdict.proven and found.difference.failures_of_other:
        bound += f"; {found.difference.failures_of_other}, so that it is compared with those that are left"
    correction = ""
    if found.verdict is Verdict.UNDECIDED and found.difference.lower_bound() > -metric.stored_margin:
        correction = "alone it would be proven, but not with Holm's correction for all comparisons; "
    reasons = (found.difference.failures, found.difference.failures_of_other, found.difference.note)
    why = f"{', '.join(filter(None, reasons))}{f' {numbers}' if found.difference.seeds else ''}"
    return {
        Verdict.IDENTICAL: f"{name} and {reference} are {found.difference.note} {numbers}{bound}.",
        Verdict.NOT_WORSE: f"{name} is at least as good as {reference} minus {margin} {numbers}{bound}.",
        Verdict.WORSE: f"{name} is worse than {reference} by more than {margin} {numbers}{bound}.",
        Verdict.UNDECIDED: f"{name} against {reference} is undecided at a margin of {margin} {numbers}; "
        f"{correction}missing: {found.missing}.",
        Verdict.NOT_TESTED: f"{name} is not tested, because a configuration "
        f"{'of' if found.test == 'Holm' else 'before it in'} the fixed sequence is not proven {numbers}.",
        Verdict.NOT_ENOUGH_EVIDENCE: f"{name} against {reference}: not enough evidence, {why}; "
        f"missing: {found.missing}.",
    }[found.verdict]
