"""Claims of others that a study checks: a quantity, the range that is claimed for it, and what the runs show."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lora_lightning.statistics.equal_loss import differences_at_equal_loss
from lora_lightning.statistics.jackknife import Interval, jackknife_interval, mean_interval
from lora_lightning.statistics.learning_rate_optimum import RateOptimum, mean_scores, rate_optimum
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.pairing import compare
from lora_lightning.statistics.power_law import lack_of_fit, log_log_slope, neighboring_exponents
from lora_lightning.statistics.study_results import ConfigurationResults, StudyResults
from lora_lightning.statistics.verdicts import ClaimVerdict, claim_verdict

EDGE = (
    "The best learning rate of {names} is the smallest or the largest one that was tried and did not fail, or would be "
    "without one of the seeds, so that nothing is decided."
)
NOTHING = "The runs that it needs have not finished, have failed, or lack the measurement."
LACKING = "No run of {names} has {measurement}, so that nothing is decided."
NO_SPREAD = "All seeds give the same value, so that there is no interval."
LEFT_OUT = "Pairs of runs that are left out: {count}. They lack a curve, or one was below that loss from the start."
NOT_ALONE = (
    "The interval of {names} alone lies outside the claimed range, but not with its share of the error rate, which "
    "{count} differences have together."
)
ABSENT = "Nothing to compare of {names}: no finished run with a seed of {against}."
INCOMPLETE = "Nothing is decided: {failures}."
FULL_RANK = "r = 1 is left out: {measurement} of a matrix of rank 1 is 1, whatever was trained."
FEW_RANKS = "Fewer than two ranks are left, so that there is no exponent."
NO_POWER = (
    "It does not grow as a power of r: the means leave the line by more than the seeds explain, and from r = {low:g} "
    "to {high:g} the exponent is {exponent:.2g}."
)
INTERPOLATED = (
    "The interval counts the seeds, and not the error of the interpolation between rates, which were tried in steps of "
    "a factor of {factor:.3g}."
)
OF_RANK_ONE = ("stable_rank", "effective_rank", "energy_rank_99", "rank_utilization")  # are 1 at r = 1 by definition

ROUNDING = 1e-9  # of a statistic of logarithms


class Quantity(StrEnum):
    """What a claim is about.

    Attributes:
        DIFFERENCE: Of the metric that decides: each configuration minus `against`, in the unit of the margin, larger is
            better.
        EXPONENT: b, if a measurement of the tested runs grows as r^b.
        LEARNING_RATE_EXPONENT: b, if the best learning rate grows as r^b.
        LEARNING_RATE_RATIO: The best learning rate, as a geometric mean over configurations, divided by that of
            `against`.
        DIFFERENCE_AT_EQUAL_LOSS: Of a measurement that was taken at each validation: each configuration minus
            `against`, at the lowest validation loss that both reach.
    """

    DIFFERENCE = "difference"
    EXPONENT = "exponent"
    LEARNING_RATE_EXPONENT = "learning_rate_exponent"
    LEARNING_RATE_RATIO = "learning_rate_ratio"
    DIFFERENCE_AT_EQUAL_LOSS = "difference_at_equal_loss"


@dataclass(frozen=True)
class Claim:
    """A claim as a study states it before it runs.

    Attributes:
        claim: In a sentence.
        source: Who claims it.
        quantity: What it is about.
        low: Lower end of the claimed range.
        high: Upper end of the claimed range.
        configurations: Which configurations; empty for all but `against`, or for all that have a rank.
        against: What they are compared with; empty for the reference.
        measurement: What is measured, for an exponent or a difference at equal loss.
    """

    claim: str
    source: str
    quantity: Quantity
    low: float = -math.inf
    high: float = math.inf
    configurations: tuple[str, ...] = ()
    against: str = ""
    measurement: str = ""


@dataclass(frozen=True)
class ClaimFinding:
    """What the runs show about a claim.

    Attributes:
        claim: The claim.
        verdict: PASS if all intervals are inside the claimed range, FAIL if one is entirely outside, otherwise
            UNDECIDED.
        intervals: The quantity with its 95 % interval; by configuration if there are several.
        seeds: Number of seeds; of several configurations the least, of those that were compared.
        note: What was left out or is not counted, or why nothing is decided; empty otherwise.
    """

    claim: Claim
    verdict: ClaimVerdict
    intervals: Mapping[str, Interval]
    seeds: int
    note: str = ""


def judge_claims(results: StudyResults) -> tuple[ClaimFinding, ...]:
    """Judges the claims of a study.

    Args:
        results: What it measured.

    Returns:
        A finding for each claim, in the order of the study.
    """
    judges: Mapping[Quantity, Callable[[Claim, StudyResults], ClaimFinding]] = {
        Quantity.DIFFERENCE: _judge_difference,
        Quantity.EXPONENT: _judge_exponent,
        Quantity.LEARNING_RATE_EXPONENT: _judge_rate_exponent,
        Quantity.LEARNING_RATE_RATIO: _judge_rate_ratio,
        Quantity.DIFFERENCE_AT_EQUAL_LOSS: _judge_at_equal_loss,
    }
    return tuple(judges[each.quantity](each, results) for each in results.claims)


def _judge_difference(claim: Claim, results: StudyResults) -> ClaimFinding:
    """Any of several differences may refute a claim about all of them, so each has its share of the error rate."""
    against = results.configuration(claim.against or results.reference)
    found = {
        each.name: compare(each, against, results.metric) for each in _configurations(claim, results, against.name)
    }
    shown = results.metric.shown_difference

    def in_unit_of_claim(interval: Interval) -> Interval:
        return Interval(*(shown(end) for end in (interval.value, interval.low, interval.high)))

    intervals = {name: in_unit_of_claim(each.interval) for name, each in found.items()}
    seeds = min((each.seeds for each in found.values() if each.seeds), default=0)
    low, high = (_stored(results, end) for end in (claim.low, claim.high))
    share = ERROR_RATE / 2 / max(1, len(found))
    outside = any(each.p_value_below(low) <= share or each.p_value_above(high) <= share for each in found.values())
    covered = [in_unit_of_claim(each.covered) for each in found.values()]
    verdicts = [claim_verdict(each, claim.low, claim.high) for each in covered]
    verdict = ClaimVerdict.FAIL if outside else _common_verdict(verdicts)
    note = _not_alone(claim, verdict, dict(zip(found, covered, strict=True)))
    incomplete = {failures for each in found.values() for failures in (each.failures, each.failures_of_other)} - {""}
    finding = _with_note(ClaimFinding(claim, verdict, intervals, seeds, note), _absent(intervals, against.name))
    return _with_note(finding, f"Runs are missing: {', '.join(sorted(incomplete))}." if incomplete else "")


def _not_alone(claim: Claim, verdict: ClaimVerdict, covered: Mapping[str, Interval]) -> str:
    """Says why nothing is refuted although an interval lies outside; empty if none does, or the claim is refuted."""
    alone = {name: claim_verdict(each, claim.low, claim.high) for name, each in covered.items()}
    outside = [name for name, found in alone.items() if found is ClaimVerdict.FAIL]
    if verdict is ClaimVerdict.FAIL or not outside:
        return ""
    return NOT_ALONE.format(names=", ".join(outside), count=len(covered))


def _absent(intervals: Mapping[str, Interval], against: str) -> str:
    """Names the configurations of which nothing could be compared; empty if there are none."""
    names = [name for name, interval in intervals.items() if math.isnan(interval.value)]
    if len(names) == len(intervals):
        return NOTHING
    return ABSENT.format(names=", ".join(names), against=against) if names else ""


def _stored(results: StudyResults, shown: float) -> float:
    """A difference in the unit of the values, from one in the unit of the margin."""
    if not math.isfinite(shown):
        return shown
    return results.metric.stored_difference(shown)


def _judge_exponent(claim: Claim, results: StudyResults) -> ClaimFinding:
    chosen = _with_rank(claim, results)
    if lacking := [each.name for each in chosen if not each.measurements.get(claim.measurement)]:
        note = LACKING.format(names=", ".join(lacking), measurement=claim.measurement)
        return ClaimFinding(claim, ClaimVerdict.UNDECIDED, {}, 0, note)
    kept_ranks = [each for each in chosen if claim.measurement not in OF_RANK_ONE or each.rank != 1]
    note = FULL_RANK.format(measurement=claim.measurement) if len(kept_ranks) < len(chosen) else ""
    if len({each.rank for each in kept_ranks}) < 2:  # noqa: PLR2004  # a slope needs two
        return ClaimFinding(claim, ClaimVerdict.UNDECIDED, {}, 0, f"{note} {FEW_RANKS}".strip())
    seeds = sorted(set.intersection(*(set(each.measurements[claim.measurement]) for each in kept_ranks)))

    def means(kept: list[int]) -> NDArray[np.float64]:
        return np.array([np.mean([each.measurements[claim.measurement][s] for s in kept]) for each in kept_ranks])

    found = _judge_power(claim, _ranks(kept_ranks), means, seeds)
    return _unless_runs_failed(_with_note(found, note), kept_ranks)


def _judge_power(
    claim: Claim, ranks: NDArray[np.float64], means: Callable[[list[int]], NDArray[np.float64]], seeds: list[int]
) -> ClaimFinding:
    """Judges an exponent, which decides nothing in favor of a claim if the numbers are no power of the rank.

    A small but certain bend refutes no claim as long as all neighbors have an exponent inside its range.

    Args:
        claim: The claim.
        ranks: (n,), float64.
        means: The numbers that should grow as a power of the rank, from some seeds.
        seeds: All seeds; empty if the runs that it needs are missing.
    """

    def exponent(kept: list[int]) -> float:
        numbers = means(kept)
        return log_log_slope(ranks, numbers) if (numbers > 0).all() else math.nan

    found = _judge_by_jackknife(claim, exponent, seeds)
    if len(seeds) < 2 or found.note or math.isnan(found.intervals[""].low):  # noqa: PLR2004
        return found
    numbers = means(seeds)
    p_value = lack_of_fit(ranks, numbers, np.array([means(kept) for kept in _without_each(seeds)]))
    # The furthest outside; negative if all are inside.
    low, high, furthest = max(
        neighboring_exponents(ranks, numbers), key=lambda each: max(claim.low - each[2], each[2] - claim.high)
    )
    if p_value > ERROR_RATE or claim.low <= furthest <= claim.high:
        return found
    verdict = ClaimVerdict.UNDECIDED if found.verdict is ClaimVerdict.PASS else found.verdict
    return replace(found, verdict=verdict, note=NO_POWER.format(low=low, high=high, exponent=furthest))


def _with_note(finding: ClaimFinding, note: str) -> ClaimFinding:
    return replace(finding, note=" ".join(filter(None, [finding.note, note])))


def _unless_runs_failed(finding: ClaimFinding, configurations: Sequence[ConfigurationResults]) -> ClaimFinding:
    """Nothing is decided by the runs that are left of a configuration whose other runs failed."""
    failures = ", ".join(each.failures for each in configurations if each.failures)
    if not failures:
        return finding
    return _with_note(replace(finding, verdict=ClaimVerdict.UNDECIDED), INCOMPLETE.format(failures=failures))


def _judge_rate_exponent(claim: Claim, results: StudyResults) -> ClaimFinding:
    chosen = _with_rank(claim, results)
    tried = _TriedRates(chosen, results)

    def rates(kept: list[int]) -> NDArray[np.float64]:
        return np.exp([tried.optimum(each, kept).log_rate for each in chosen])

    return _judge_rates(_judge_power(claim, _ranks(chosen), rates, tried.seeds), tried)


def _judge_rate_ratio(claim: Claim, results: StudyResults) -> ClaimFinding:
    against = results.configuration(claim.against or results.reference)
    chosen = _configurations(claim, results, against.name)
    tried = _TriedRates([*chosen, against], results)

    def log_ratio(kept: list[int]) -> float:
        mean = float(np.mean([tried.optimum(each, kept).log_rate for each in chosen]))
        return mean - tried.optimum(against, kept).log_rate

    return _judge_rates(_judge_by_jackknife(claim, log_ratio, tried.seeds, math.exp), tried)


def _judge_rates(found: ClaimFinding, tried: "_TriedRates") -> ClaimFinding:
    """What was found of best learning rates, which an optimum at the edge or without spread leaves undecided."""
    if not tried.seeds:
        return found
    note = EDGE.format(names=", ".join(tried.at_edge)) if tried.at_edge else ""
    if note or found.note == NO_SPREAD:
        return replace(found, verdict=ClaimVerdict.UNDECIDED, note=note or found.note)
    return _with_note(found, INTERPOLATED.format(factor=tried.largest_step))


class _TriedRates:
    """The validation metrics of the learning rates that configurations tried.

    Args:
        configurations: All that are compared.
        results: What the study measured.
    """

    def __init__(self, configurations: Sequence[ConfigurationResults], results: StudyResults) -> None:
        self.higher_is_better = results.metric.higher_is_better
        seeds = {seed for each in configurations for values in each.tried_rates.values() for seed in values}
        # A rate of which a run failed is out, also where that seed is left out.
        self.rates = {
            each.name: {rate: values if seeds <= {*values} else {} for rate, values in each.tried_rates.items()}
            for each in configurations
        }
        known = all(any(values for values in tried.values()) for tried in self.rates.values())
        self.seeds = sorted(seeds) if known else []

    @property
    def largest_step(self) -> float:
        """The largest ratio of neighboring rates that a configuration tried."""
        return max(high / low for tried in self.rates.values() for low, high in pairwise(sorted(tried)))

    def optimum(self, configuration: ConfigurationResults, seeds: list[int]) -> RateOptimum:
        """The best rate of a configuration by some seeds."""
        scores = mean_scores(self.rates[configuration.name], seeds, higher_is_better=self.higher_is_better)
        return rate_optimum(scores)

    @property
    def at_edge(self) -> list[str]:
        """Configurations whose optimum is at the edge, by all seeds or without one of them."""
        subsets = [self.seeds, *_without_each(self.seeds)]
        better = self.higher_is_better
        return [
            name
            for name, tried in self.rates.items()
            if any(rate_optimum(mean_scores(tried, kept, higher_is_better=better)).at_edge for kept in subsets)
        ]


def _without_each(seeds: list[int]) -> list[list[int]]:
    """All seeds but one, for each of them; empty for a single seed."""
    return [[seed for seed in seeds if seed != left_out] for left_out in seeds] if len(seeds) > 1 else []


def _judge_at_equal_loss(claim: Claim, results: StudyResults) -> ClaimFinding:
    against = results.configuration(claim.against or results.reference)
    chosen = _configurations(claim, results, against.name)
    compared = {each.name: differences_at_equal_loss(each, against, claim.measurement) for each in chosen}
    found = {name: numbers for name, (numbers, _) in compared.items()}
    left_out = sum(count for _, count in compared.values())
    note = LEFT_OUT.format(count=left_out) if left_out else ""
    seeds = min((len(numbers) for numbers in found.values() if numbers), default=0)
    if not seeds:
        return ClaimFinding(claim, ClaimVerdict.UNDECIDED, {}, 0, note or NOTHING)
    intervals = {name: mean_interval(numbers) for name, numbers in found.items()}
    share = 1 - ERROR_RATE / len(found)
    wide = [mean_interval(numbers, share) for numbers in found.values()]
    verdicts = [claim_verdict(each, claim.low, claim.high) for each in intervals.values()]
    refuted = any(claim_verdict(each, claim.low, claim.high) is ClaimVerdict.FAIL for each in wide)
    verdict = ClaimVerdict.FAIL if refuted else _common_verdict(verdicts)
    if any(map(_has_no_spread, intervals.values())):
        verdict, note = ClaimVerdict.UNDECIDED, " ".join(filter(None, [note, NO_SPREAD]))
    note = " ".join(filter(None, [note, _not_alone(claim, verdict, intervals)]))
    finding = _with_note(ClaimFinding(claim, verdict, intervals, seeds, note), _absent(intervals, against.name))
    return _unless_runs_failed(finding, [*chosen, against])


def _common_verdict(verdicts: Sequence[ClaimVerdict]) -> ClaimVerdict:
    """PASS if all pass, otherwise UNDECIDED: what refutes is tested with a share of the error rate."""
    return ClaimVerdict.PASS if set(verdicts) == {ClaimVerdict.PASS} else ClaimVerdict.UNDECIDED


def _judge_by_jackknife(
    claim: Claim, statistic: Callable[[list[int]], float], seeds: list[int], shown: Callable[[float], float] = float
) -> ClaimFinding:
    """Judges a quantity by its jackknife interval over seeds.

    Args:
        claim: The claim.
        statistic: The quantity of some seeds.
        seeds: All seeds; empty if the runs that it needs are missing.
        shown: Converts the quantity and the ends of its interval into the unit of the claim.
    """
    if not seeds:
        return ClaimFinding(claim, ClaimVerdict.UNDECIDED, {}, 0, NOTHING)
    without_one = np.array([statistic(kept) for kept in _without_each(seeds)], dtype=np.float64)
    found = jackknife_interval(statistic(seeds), without_one)
    interval = Interval(shown(found.value), shown(found.low), shown(found.high))
    finding = ClaimFinding(claim, claim_verdict(interval, claim.low, claim.high), {"": interval}, len(seeds))
    return replace(finding, verdict=ClaimVerdict.UNDECIDED, note=NO_SPREAD) if _has_no_spread(interval) else finding


def _has_no_spread(interval: Interval) -> bool:
    """Whether all seeds gave the same value: an interval of no width proves nothing."""
    return interval.high - interval.low <= ROUNDING * max(1.0, abs(interval.value))


def _configurations(claim: Claim, results: StudyResults, against: str) -> list[ConfigurationResults]:
    names = claim.configurations or [each.name for each in results.configurations if each.name != against]
    return [results.configuration(name) for name in names]


def _with_rank(claim: Claim, results: StudyResults) -> list[ConfigurationResults]:
    names = claim.configurations or [each.name for each in results.configurations]
    return [each for each in map(results.configuration, names) if each.rank is not None]


def _ranks(configurations: Sequence[ConfigurationResults]) -> NDArray[np.float64]:
    return np.array([each.rank for each in configurations], dtype=np.float64)
