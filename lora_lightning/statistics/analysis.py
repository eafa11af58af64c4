"""The answer of a study: which configuration is enough, which differences are chance, and what is missing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

from lora_lightning.statistics.claims import ClaimFinding, judge_claims
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE, fixed_sequence, holm, holm_share
from lora_lightning.statistics.paired import PairedDifference
from lora_lightning.statistics.pairing import check_study_results, compare, unpaired_seeds
from lora_lightning.statistics.pareto import pareto_front
from lora_lightning.statistics.recommendation import Recommendation, recommend
from lora_lightning.statistics.study_results import Scale, StudyResults
from lora_lightning.statistics.verdicts import (
    ClaimVerdict,
    Comparison,
    Verdict,
    claim_verdict,
    shown_difference,
    shown_margin,
    variance_shares,
    verdict_sentence,
    what_is_missing,
)

CLOSE_TO_FULL = 3.0  # percent
WIDE_MARGIN = 10.0  # points or percent


@dataclass(frozen=True)
class Pair:
    """Two configurations and whether their difference is more than chance.

    Attributes:
        first: Name of the one that is judged.
        second: Name of the one that it is compared with.
        difference: First minus second, in the unit of the values, larger is better.
        p_value: Two-sided, adjusted by Holm over all pairs.
    """

    first: str
    second: str
    difference: PairedDifference
    p_value: float

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than chance, with an error rate of 5 % over all pairs."""
        return self.p_value <= ERROR_RATE


@dataclass(frozen=True)
class AgainstFull:
    """A configuration compared with full fine-tuning.

    Attributes:
        name: The configuration.
        percent: Relative difference in percent of the full fine-tuning's mean, with its 95 % interval.
        verdict: Whether it is at most 3 % worse.
    """

    name: str
    percent: Interval
    verdict: ClaimVerdict


@dataclass(frozen=True)
class StudyAnalysis:
    """All verdicts of a study.

    Attributes:
        comparisons: Every configuration but the reference, in the order of the study.
        smallest_sufficient: Last configuration of the fixed sequence that is proven, r* in a study of ranks; `None` if
            none is, or without a sequence.
        recommendation: What to train, and why.
        pairs: All pairs of configurations; recommends nothing.
        pareto: By cost: names of the configurations that no other one beats in quality and cost at once.
        against_full: Comparisons with full fine-tuning, if the study has it.
        claims: What the runs show about the claims of the study.
    """

    comparisons: tuple[Comparison, ...]
    smallest_sufficient: str | None
    recommendation: Recommendation
    pairs: tuple[Pair, ...]
    pareto: Mapping[str, tuple[str, ...]]
    against_full: tuple[AgainstFull, ...]
    claims: tuple[ClaimFinding, ...] = ()

    @property
    def indistinguishable(self) -> tuple[Pair, ...]:
        """The pairs that cannot be told apart."""
        return tuple(pair for pair in self.pairs if not pair.told_apart)


def analyze_study(results: StudyResults) -> StudyAnalysis:
    """Analyzes a study.

    Args:
        results: What it measured.

    Returns:
        Its verdicts and its recommendation.

    Raises:
        ConfigurationError: If the results do not fit together.
    """
    check_study_results(results)
    comparisons = compare_with_reference(results)
    passed = [each.name for each in comparisons if each.test == "fixed sequence" and each.verdict.proven]
    in_order = [name for name in results.sequence if name in passed]
    return StudyAnalysis(
        comparisons=comparisons,
        smallest_sufficient=in_order[-1] if in_order else None,
        recommendation=recommend(results, comparisons, in_order[-1] if in_order else None),
        pairs=compare_all_pairs(results),
        pareto={cost: _front(results, cost) for cost in results.costs},
        against_full=compare_with_full(results),
        claims=judge_claims(results),
    )


def weak_reference_note(results: StudyResults, analysis: StudyAnalysis) -> str:
    """Says that the reference is worse than a cheaper configuration, so that being as good as it proves little.

    Args:
        results: What the study measured.
        analysis: Its verdicts.

    Returns:
        A sentence on the configuration that is the furthest above the reference; empty if none that costs less is
        better by more than chance, with Holm's correction for all comparisons with the reference.
    """
    if not results.costs:
        return ""
    cost = {each.name: each.mean_of(results.costs[0]) for each in results.configurations}
    differences = [each.difference for each in analysis.comparisons]
    p_values = holm([each.p_value for each in differences], [each.can_differ for each in differences])
    better = [
        each
        for each, p in zip(analysis.comparisons, p_values, strict=True)
        if p <= ERROR_RATE and each.difference.interval.value > 0 and cost[each.name] < cost[results.reference]
    ]
    if not better:
        return ""
    best = max(better, key=lambda each: each.difference.interval.value)
    numbers = shown_difference(best.difference, results.metric)
    note = (
        f"{best.name} is better than the reference {results.reference}, which costs more ({numbers}). Such a reference "
        "may not have had the settings that suit it, such as its learning rate, and then being as good as it proves "
        "little."
    )
    tuned = any(each.tried_rates for each in results.configurations)
    return note if tuned else f"{note} A study can choose a learning rate for each configuration."


def wide_margin_note(results: StudyResults) -> str:
    """Says that the margin is so large that "not worse" hardly says anything.

    Args:
        results: What was measured.

    Returns:
        A sentence; empty if the margin is at most 10 points or percent. A margin in another unit is wide if it is more
        than 10 % of the largest value, and more than all values differ by.
    """
    metric = results.metric
    values = [value for each in results.configurations for value in each.values.values()]
    largest = max(map(abs, values), default=0.0)
    if metric.scale is Scale.PLAIN:
        is_wide = bool(values) and metric.margin > max(largest * WIDE_MARGIN / 100, max(values) - min(values))
    else:
        is_wide = metric.margin > WIDE_MARGIN
    if not is_wide:
        return ""
    return (
        f"The margin is {shown_margin(metric)}: a configuration that is worse by almost as much still counts as not "
        "worse. Choose the largest loss that does not matter to you."
    )


def better_than_recommended_note(results: StudyResults, analysis: StudyAnalysis) -> str:
    """Says that a configuration is better than the recommended one, which is the cheapest that is good enough.

    Args:
        results: What the study measured.
        analysis: Its verdicts.

    Returns:
        A sentence on the configuration that is the furthest above the recommended one; empty if none is better by more
        than chance, with Holm's correction over all pairs.
    """
    recommended = analysis.recommendation.name
    better: list[tuple[PairedDifference, str]] = []
    for pair in analysis.pairs:
        if pair.told_apart and recommended in {pair.first, pair.second}:
            is_first = pair.first == recommended
            found = pair.difference.reversed if is_first else pair.difference
            better.append((found, pair.second if is_first else pair.first))
    best, name = max(better, key=lambda each: each[0].interval.value, default=(None, ""))
    if best is None or best.interval.value <= 0:
        return ""
    return (
        f"{name} is better than the recommended {recommended} by more than chance "
        f"({shown_difference(best, results.metric)}): a recommendation says what is enough, and not what is best."
    )


def compare_with_reference(results: StudyResults) -> tuple[Comparison, ...]:
    """Judges every configuration against the reference.

    Args:
        results: What the study measured.

    Returns:
        Comparisons in the order of the configurations, without the reference.
    """
    reference = results.configuration(results.reference)
    others = [each for each in results.configurations if each.name != results.reference]
    found = {each.name: compare(each, reference, results.metric) for each in others}
    margin = results.metric.stored_margin
    p_values = {name: difference.p_value_above(-margin) for name, difference in found.items()}
    apart = [name for name in found if name not in results.sequence]
    testable = [found[name].is_tested and not found[name].failures for name in apart]
    p_values |= dict(zip(apart, holm([p_values[name] for name in apart], testable), strict=True))
    share = holm_share([p_values[name] for name, counts in zip(apart, testable, strict=True) if counts])
    passed = fixed_sequence([p_values[name] for name in results.sequence])
    # What the sequence leaves out has the error rate only if the sequence did not use it up.
    whole = passed == len(results.sequence)
    proven = {*results.sequence[:passed], *(name for name in apart if whole and p_values[name] <= ERROR_RATE)}
    below = holm(
        [difference.p_value_below(-margin) for difference in found.values()],
        [difference.is_tested and not difference.failures_of_other for difference in found.values()],
    )
    worse = {name for name, p in zip(found, below, strict=True) if p <= ERROR_RATE}
    comparisons = []
    for each in others:
        difference = found[each.name]
        untested = not whole if each.name in apart else each.name in results.sequence[passed + 1 :]
        rate = share if each.name in apart else ERROR_RATE
        enough = difference.p_value_above(-margin) <= ERROR_RATE  # by itself
        verdict = _verdict(
            difference, proven=each.name in proven, worse=each.name in worse, untested=untested, enough=enough
        )
        waiting = verdict in {Verdict.UNDECIDED, Verdict.NOT_ENOUGH_EVIDENCE}
        comparison = Comparison(
            name=each.name,
            difference=difference,
            verdict=verdict,
            p_value=p_values[each.name],
            test="fixed sequence" if each.name in results.sequence else "Holm",
            missing=what_is_missing(difference, results.metric, rate) if waiting else "",
            unpaired_seeds=unpaired_seeds(each, reference),
            sentence="",
            variance_shares=variance_shares(difference),
        )
        sentence = verdict_sentence(each.name, results.reference, results.metric, comparison)
        comparisons.append(replace(comparison, sentence=sentence))
    return tuple(comparisons)


def compare_all_pairs(results: StudyResults) -> tuple[Pair, ...]:
    """Tests whether configurations differ, with Holm's correction over all pairs.

    Args:
        results: What the study measured.

    Returns:
        All pairs; the second one comes earlier in the study.
    """
    pairs = [(second, first) for first, second in combinations(results.configurations, 2)]
    found = [compare(first, second, results.metric) for first, second in pairs]
    adjusted = holm([each.p_value for each in found], [each.can_differ for each in found])
    return tuple(
        Pair(first.name, second.name, difference, p)
        for (first, second), difference, p in zip(pairs, found, adjusted, strict=True)
    )


def compare_with_full(results: StudyResults) -> tuple[AgainstFull, ...]:
    """Tests whether configurations are at most 3 % worse than full fine-tuning, whose mean is taken as exact.

    Args:
        results: What the study measured.

    Returns:
        One comparison per configuration with LoRA; empty without full fine-tuning.
    """
    if results.full_fine_tuning is None:
        return ()
    full = results.configuration(results.full_fine_tuning)
    mean = sum(full.values.values()) / len(full.values) if full.values else math.nan

    def percent(difference: float) -> float:
        if results.metric.scale is Scale.LOG:
            return results.metric.shown_difference(difference)
        return 100 * difference / abs(mean) if mean else math.nan

    compared = []
    for each in results.configurations:
        if each.name != full.name:
            found = compare(each, full, results.metric)
            interval, covered = (
                Interval(percent(ends.value), percent(ends.low), percent(ends.high))
                for ends in (found.interval, found.covered)
            )
            compared.append(AgainstFull(each.name, interval, claim_verdict(covered, low=-CLOSE_TO_FULL)))
    return tuple(compared)


def as_json(value: Any) -> Any:
    """Converts an analysis into what JSON can hold; numbers that are not finite become null.

    Without fields that are not shown: what a test was computed from.

    Args:
        value: A `StudyAnalysis` or a part of it.

    Returns:
        Dictionaries, lists, strings and numbers.
    """
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value) if each.repr}
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _verdict(difference: PairedDifference, *, proven: bool, worse: bool, untested: bool, enough: bool) -> Verdict:
    if difference.identical and proven:
        return Verdict.IDENTICAL
    if difference.note and not (difference.identical and untested and enough):
        return Verdict.NOT_ENOUGH_EVIDENCE
    if proven:
        return Verdict.NOT_WORSE
    if worse:
        return Verdict.WORSE
    if difference.failures or difference.failures_of_other:
        return Verdict.NOT_ENOUGH_EVIDENCE
    return Verdict.NOT_TESTED if untested else Verdict.UNDECIDED


def _front(results: StudyResults, cost: str) -> tuple[str, ...]:
    sign = 1.0 if results.metric.higher_is_better else -1.0
    names = [each.name for each in results.configurations]
    kept = pareto_front(
        [sign * each.mean_value for each in results.configurations],
        [each.mean_of(cost) for each in results.configurations],
    )
    return tuple(name for name, on_front in zip(names, kept, strict=True) if on_front)
