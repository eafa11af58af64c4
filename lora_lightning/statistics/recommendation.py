"""What to train: the cheapest configuration that is proven to be as good as the reference, minus the margin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lightning.statistics.study_results import StudyResults
from lora_lightning.statistics.verdicts import Comparison, Verdict, shown_difference, shown_margin

if TYPE_CHECKING:
    from lora_lightning.statistics.analysis import StudyAnalysis


@dataclass(frozen=True)
class Recommendation:
    """What to train.

    Attributes:
        name: The configuration; `None` if nothing tells which one is cheaper, or if it would be the reference, and
            runs of that failed.
        proven: Whether it was proven good enough; the reference is recommended without proof.
        answer: Two sentences with their numbers.
    """

    name: str | None
    proven: bool
    answer: str


def recommend(
    results: StudyResults, comparisons: Sequence[Comparison], smallest_sufficient: str | None = None
) -> Recommendation:
    """Recommends a configuration.

    Args:
        results: What the study measured.
        comparisons: The verdicts.
        smallest_sufficient: Last configuration of the fixed sequence that is proven.

    Returns:
        The cheapest proven configuration; the reference if none is proven, or none that costs less. If costs are
        missing, the last proven configuration of the fixed sequence, or none. None if the reference has no result, or
        would be recommended although runs of it failed.
    """
    if not results.configuration(results.reference).values:
        return _without_reference(results.reference)
    proven = {each.name: each for each in comparisons if each.verdict.proven}
    if not proven:
        return _reference(results, *_nothing_proven(results, comparisons))
    known = _known_costs(results, [*proven, results.reference])
    if not known and smallest_sufficient is not None:
        answer = f"{_proof(results, proven[smallest_sufficient], smallest_sufficient)} It is the last configuration "
        answer += "with that proof in the fixed sequence of tests, which stands in for costs that are missing."
        return Recommendation(smallest_sufficient, proven=True, answer=answer)
    if not known:
        names = ", ".join(proven)
        answer = f"{_proof(results, next(iter(proven.values())), smallest_sufficient)} Nothing says which of "
        answer += f"{names} and {results.reference} costs less{_missing_costs(results, [*proven, results.reference])}, "
        answer += "so no configuration is recommended."
        return Recommendation(None, proven=True, answer=answer)
    sign = 1.0 if results.metric.higher_is_better else -1.0
    best = min(proven, key=lambda name: (known[name], -sign * results.configuration(name).mean_value))
    own = known[results.reference]
    if own <= known[best]:
        reason = f"no cheaper configuration is proven at least as good as it minus {shown_margin(results.metric)}."
        return _reference(results, reason, _proof(results, proven[best], smallest_sufficient))
    answer = f"{_proof(results, proven[best], smallest_sufficient)} {_cost_sentence(results, known[best], own)}"
    return Recommendation(best, proven=True, answer=answer)


def _known_costs(results: StudyResults, names: Sequence[str]) -> dict[str, float]:
    """The first cost by configuration; empty unless all have it, since one that lacks it may be the cheapest."""
    costs = {name: results.configuration(name).mean_of(cost) for name in names for cost in results.costs[:1]}
    return {} if any(map(math.isnan, costs.values())) else costs


def _missing_costs(results: StudyResults, names: Sequence[str]) -> str:
    """Says in parentheses which configurations lack the first cost, or that there is none."""
    if not results.costs:
        return " (no column is a cost; name one with --cost)"
    cost = results.costs[0]
    missing = [name for name in names if math.isnan(results.configuration(name).mean_of(cost))]
    return f" ({cost.replace('_', ' ')} is missing for {', '.join(missing)})"


def recommend_winner(results: StudyResults, analysis: "StudyAnalysis") -> Recommendation:
    """Recommends the winner of a search, if its tested runs prove that it is better than the reference, or cheaper.

    Args:
        results: What the study measured: the reference, and the winner unless it is the reference.
        analysis: The verdicts.

    Returns:
        The winner; the reference if the winner is proven neither better, nor cheaper and not worse.
    """
    found = next(iter(analysis.comparisons), None)
    if not results.configuration(results.reference).values:
        return _without_reference(results.reference)
    if found is None or analysis.recommendation.name == found.name:
        return analysis.recommendation
    difference = f"({shown_difference(found.difference, results.metric)})"
    fresh = "The comparison is on test, with seeds that chose nothing."
    if analysis.pairs[0].told_apart and found.difference.interval.value > 0:
        answer = f"{found.name} is better than {results.reference} {difference}. {fresh}"
        return Recommendation(found.name, proven=True, answer=answer)
    reason = f"the winner of the search, {found.name}, is not proven better {difference}."
    return _reference(results, reason, fresh)


def shown_cost(cost: float) -> str:
    """Formats a cost, such as `294,912` or `1.25`."""
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"  # noqa: PLR2004


def _nothing_proven(results: StudyResults, comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """Why the reference is left, and the sentence on the configuration that came nearest."""
    if not comparisons:
        return "there is no other configuration.", ""
    in_order = [each for name in results.sequence for each in comparisons if each.name == name]
    nearest = (in_order or sorted(comparisons, key=lambda each: each.p_value))[0]
    reason = f"no other configuration is proven at least as good as it minus {shown_margin(results.metric)}."
    return reason, nearest.sentence


def _reference(results: StudyResults, reason: str, evidence: str) -> Recommendation:
    """Recommends the reference, unless runs of it failed."""
    reference, failures = results.reference, results.configuration(results.reference).failures
    if failures:
        answer = f"Nothing is recommended: {failures}, and a study needs all runs of its reference. {evidence}"
        return Recommendation(None, proven=False, answer=answer.rstrip())
    return Recommendation(reference, proven=False, answer=f"{reference} is recommended: {reason} {evidence}".rstrip())


def _without_reference(name: str) -> Recommendation:
    answer = f"Nothing is recommended: the reference {name} has no finished and tested run to compare others with."
    return Recommendation(None, proven=False, answer=answer)


def _proof(results: StudyResults, found: Comparison, smallest_sufficient: str | None) -> str:
    if (
        found.name == smallest_sufficient
        and found.verdict is Verdict.NOT_WORSE
        and not found.difference.failures_of_other
    ):
        return (
            f"{found.name} is enough: at least as good as {results.reference} minus {shown_margin(results.metric)} "
            f"({shown_difference(found.difference, results.metric)})."
        )
    return found.sentence


def _cost_sentence(results: StudyResults, cost: float, own: float) -> str:
    words = results.costs[0].replace("_", " ")
    share = f", {100 * cost / own:.3g} % of {results.reference}'s {shown_cost(own)}" if own > 0 else ""
    return f"It is the cheapest configuration with that proof: {shown_cost(cost)} {words}{share}."
