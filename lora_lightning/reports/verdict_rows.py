"""A study's verdicts as the rows of a table, for the terminal and for the HTML report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_lightning.statistics.analysis import Pair, StudyAnalysis
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults
from lora_lightning.statistics.verdicts import Comparison, shown_number

MOST_PAIRS = 6  # named in a sentence


@dataclass(frozen=True)
class VerdictRow:
    """One configuration in a table; numbers are formatted, and empty if they do not exist.

    Attributes:
        name: The configuration.
        seeds: Number of its runs.
        mean: Mean of the metric, as shown.
        difference: From the reference, larger is better.
        interval: Its 95 % interval.
        verdict: The verdict in words, or `"reference"`.
        kind: Whether the difference from the reference is more than chance.
        recommended: Whether the study recommends it.
    """

    name: str
    seeds: int
    mean: str
    difference: str
    interval: str
    verdict: str
    kind: str
    recommended: bool


def verdict_rows(results: StudyResults, analysis: StudyAnalysis) -> list[VerdictRow]:
    """Arranges the verdicts.

    Args:
        results: What the study measured.
        analysis: Its verdicts.

    Returns:
        A row per configuration, in the order of the results.
    """
    comparisons = {each.name: each for each in analysis.comparisons}
    pairs = {
        name: pair
        for pair in analysis.pairs
        for name, other in ((pair.first, pair.second), (pair.second, pair.first))
        if other == results.reference
    }
    rows = []
    for each in results.configurations:
        comparison = comparisons.get(each.name)
        cells = ("", "", "reference", "")
        if comparison is not None:
            cells = _cells(comparison, pairs[each.name], results.metric)
        mean = shown_mean(each, results.metric)
        recommended = each.name == analysis.recommendation.name
        rows.append(VerdictRow(each.name, len(each.values), mean, *cells, recommended))
    return rows


def shown_mean(configuration: ConfigurationResults, metric: Metric) -> str:
    """Formats the mean of a configuration with the digits of differences; empty without runs."""
    mean = configuration.mean_value
    if math.isnan(mean):
        return ""
    return (
        f"{metric.shown_value(mean):.4g}"
        if metric.scale is Scale.LOG
        else shown_number(metric.shown_value(mean), metric)
    )


def shown_value_unit(metric: Metric) -> str:
    """The unit of shown values, after a space."""
    return " %" if metric.scale is Scale.FRACTION else ""


def sign_of_differences(metric: Metric) -> str:
    """Says, after a comma, what the sign of a difference means where that is not the sign of a subtraction."""
    return "" if metric.higher_is_better else ", and a difference above 0 means better"


def better_first(pair: Pair, metric: Metric) -> tuple[str, str, str]:
    """Arranges a pair for a sentence.

    Args:
        pair: Two configurations that differ.
        metric: The metric that decides.

    Returns:
        The better configuration, the other one, and by how much it is better, above 0, in the unit of the margin.
    """
    is_first = pair.difference.interval.value >= 0
    first, second = (pair.first, pair.second) if is_first else (pair.second, pair.first)
    found = pair.difference if is_first else pair.difference.reversed
    return first, second, shown_number(metric.shown_difference(found.interval.value), metric)


def against_full_sentences(analysis: StudyAnalysis) -> list[str]:
    """Says of each configuration whether it is close to full fine-tuning; empty without that."""
    return [
        f"{each.name}, compared with full fine-tuning: {each.verdict} for at most 3 % worse; relative difference in "
        f"percent: {each.percent}."
        for each in analysis.against_full
    ]


def chance_sentence(analysis: StudyAnalysis) -> str:
    """Says which pairs of configurations differ by more than chance.

    Args:
        analysis: The verdicts.

    Returns:
        A sentence on the pairs that have an interval, and one on those of which failed runs leave that open; empty if
        there are neither.
    """
    with_interval = [pair for pair in analysis.pairs if not math.isnan(pair.difference.interval.low)]
    known = [pair for pair in with_interval if not _is_unknown(pair)]
    left = len(with_interval) - len(known)
    unknown = f"Of {left} pair{'s' * (left > 1)} with failed runs, it is unknown whether the difference is noise."
    return " ".join(filter(None, [_sentence_on_pairs(known, analysis), unknown if left else ""]))


def _sentence_on_pairs(known: Sequence[Pair], analysis: StudyAnalysis) -> str:
    apart = [pair for pair in known if pair.told_apart]
    together = len(known) - len(apart)
    if not known:
        return ""
    rate = "Holm's correction, an error rate of 5 % over all pairs"
    if len(known) == 1 == len(analysis.pairs):
        if known[0].difference.identical:
            return "There is no difference."
        return "The difference is more than chance." if apart else "The difference may be noise."
    pairs = f"{len(known)} pair{'s' * (len(known) > 1)} of configurations"
    pairs += " with an interval" if any(math.isnan(pair.difference.interval.low) for pair in analysis.pairs) else ""
    pairs += " that can be tested" if any(map(_is_unknown, analysis.pairs)) else ""
    if not apart:
        return f"None of {pairs} can be told apart ({rate}): all differences may be noise."
    names = "; ".join(f"{pair.first} and {pair.second}" for pair in apart[:MOST_PAIRS])
    more = f"; and {len(apart) - MOST_PAIRS} more" if len(apart) > MOST_PAIRS else ""
    rest = f"; the other {together} cannot be told apart and may be noise" if together else ""
    differ = "differs" if len(apart) == 1 else "differ"
    return f"{len(apart)} of {pairs} {differ} by more than chance ({rate}): {names}{more}{rest}."


def _is_unknown(pair: Pair) -> bool:
    """Whether runs failed, so that the difference was not tested in its favor; it may be neither chance nor more."""
    return bool(pair.difference.failures or pair.difference.failures_of_other) and not pair.told_apart


def _cells(comparison: Comparison, pair: Pair, metric: Metric) -> tuple[str, str, str, str]:
    found = comparison.difference.interval
    if math.isnan(found.value):
        return "", "", str(comparison.verdict), ""
    value, low, high = (
        "" if math.isnan(number) else shown_number(metric.shown_difference(number), metric)
        for number in (found.value, found.low, found.high)
    )
    if comparison.difference.identical:
        kind = "none"
    elif math.isnan(found.low) or _is_unknown(pair):
        kind = "unknown"
    else:
        kind = "more than chance" if pair.told_apart else "maybe noise"
    return value, f"{low} to {high}" if low else "", str(comparison.verdict), kind
