"""Claims of others that a study checks: a quantity, the range that is claimed for it, and what the runs show."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from lora_lightning.statistics.equal_loss import differences_at_equal_loss
from lora_lightning.statistics.jackknife import Interval, jackknife_interval, mean_interval
from lora_lightning.statistics.learning_rate_optimum import RateOptimum, log_log_slope, mean_scores, rate_optimum
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.pairing import compare
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
        seeds: Number of seeds.
        note: Why nothing is decided; empty otherwise.
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
    seeds = min((each.seeds for each in found.values()), default=0)
    low, high = (_stored(results, end) for end in (claim.low, claim.high))
    share = ERROR_RATE / 2 / max(1, len(found))
    outside = any(each.p_value_below(low) <= share or each.p_value_above(high) <= share for each in found.values())
    covered = [in_unit_of_claim(each.covered) for each in found.values()]
    verdicts = [claim_verdict(each, claim.low, claim.high) for each in covered]
    verdict = ClaimVerdict.FAIL if outside else _common_verdict(verdicts)
    return ClaimFinding(claim, verdict, intervals, seeds, "" if seeds else NOTHING)


def _stored(results: StudyResults, shown: float) -> float:
    """A difference in the unit of the values, from one in the unit of the margin."""
    if not math.isfinite(shown):
        return shown
    return results.metric.stored_difference(shown)


def _judge_exponent(claim: Claim, results: StudyResults) -> ClaimFinding:
    chosen = _with_rank(claim, results)
    ranks = _ranks(chosen)
    if lacking := [each.name for each in chosen if not each.measurements.get(claim.measurement)]:
        note = LACKING.format(names=", ".join(lacking), measurement=claim.measurement)
        return ClaimFinding(claim, ClaimVerdict.UNDECIDED, {}, 0, note)
    seeds = sorted(set.intersection(*(set(each.measurements[claim.measurement]) for each in chosen)))

    def exponent(kept: list[int]) -> float:
        means = [float(np.mean([each.measurements[claim.measurement][seed] for seed in kept])) for each in chosen]
        return log_log_slope(ranks, np.array(means)) if min(means) > 0 else math.nan

    return _judge_by_jackknife(claim, exponent, seeds)


def _judge_rate_exponent(claim: Claim, results: StudyResults) -> ClaimFinding:
    chosen = _with_rank(claim, results)
    ranks, tried = _ranks(chosen), _TriedRates(chosen, results)

    def exponent(kept: list[int]) -> float:
        return log_log_slope(ranks, np.exp([tried.optimum(each, kept).log_rate for each in chosen]))

    return _judge_rates(claim, exponent, tried)


def _judge_rate_ratio(claim: Claim, results: StudyResults) -> ClaimFinding:
    against = results.configuration(claim.against or results.reference)
    chosen = _configurations(claim, results, against.name)
    tried = _TriedRates([*chosen, against], results)

    def log_ratio(kept: list[int]) -> float:
        mean = float(np.mean([tried.optimum(each, kept).log_rate for each in chosen]))
        return mean - tried.optimum(against, kept).log_rate

    return _judge_rates(claim, log_ratio, tried, math.exp)


def _judge_rates(
    claim: Claim,
    statistic: Callable[[list[int]], float],
    tried: "_TriedRates",
    shown: Callable[[float], float] = float,
) -> ClaimFinding:
    """Judges a quantity of best learning rates, which an optimum at the edge or without spread leaves undecided."""
    found = _judge_by_jackknife(claim, statistic, tried.seeds, shown)
    if not tried.seeds:
        return found
    note = EDGE.format(names=", ".join(tried.at_edge)) if tried.at_edge else ""
    interval = found.intervals[""]
    if not note and interval.high - interval.low <= ROUNDING * max(1.0, abs(interval.value)):
        note = NO_SPREAD
    return replace(found, verdict=ClaimVerdict.UNDECIDED, note=note) if note else found


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
    compared = {
        each.name: differences_at_equal_loss(each, against, claim.measurement)
        for each in _configurations(claim, results, against.name)
    }
    found = {name: numbers for name, (numbers, _) in compared.items()}
    left_out = sum(count for _, count in compared.values())
    note = LEFT_OUT.format(count=left_out) if left_out else ""
    seeds = min(map(len, found.values()), default=0)
    if not seeds:
        return ClaimFinding(claim, ClaimVerdict.UNDECIDED, {}, 0, note or NOTHING)
    intervals = {name: mean_interval(numbers) for name, numbers in found.items()}
    share = 1 - ERROR_RATE / len(found)
    wide = [mean_interval(numbers, share) for numbers in found.values()]
    verdicts = [claim_verdict(each, claim.low, claim.high) for each in intervals.values()]
    refuted = any(claim_verdict(each, claim.low, claim.high) is ClaimVerdict.FAIL for each in wide)
    verdict = ClaimVerdict.FAIL if refuted else _common_verdict(verdicts)
    return ClaimFinding(claim, verdict, intervals, seeds, note)


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
    return ClaimFinding(claim, claim_verdict(interval, claim.low, claim.high), {"": interval}, len(seeds))


def _configurations(claim: Claim, results: StudyResults, against: str) -> list[ConfigurationResults]:
    names = claim.configurations or [each.name for each in results.configurations if each.name != against]
    return [results.configuration(name) for name in names]


def _with_rank(claim: Claim, results: StudyResults) -> list[ConfigurationResults]:
    names = claim.configurations or [each.name for each in results.configurations]
    return [each for each in map(results.configuration, names) if each.rank is not None]


def _ranks(configurations: Sequence[ConfigurationResults]) -> NDArray[np.float64]:
    return np.array([each.rank for each in configurations], dtype=np.float64)
