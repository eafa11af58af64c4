"""Which rank is enough at which precision, and does more rank buy back what quantization lost?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.statistics.analysis import StudyAnalysis, analyze_study
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE, holm, holm_share
from lora_lightning.statistics.paired import PairedDifference
from lora_lightning.statistics.pairing import common_seeds, compare
from lora_lightning.statistics.ratio import bought_back_share
from lora_lightning.statistics.study_results import StudyResults
from lora_lightning.statistics.verdicts import Verdict, shown_difference, shown_margin, what_is_missing


@dataclass(frozen=True)
class RankOfPrecision:
    """The ranks of one precision.

    Attributes:
        precision: Its name.
        smallest: The least rank that is proven to be enough, compared with the largest one; `None` if none is.
        means: Mean of the metric by rank, as shown, with a t interval over all of its seeds; geometric if values are
            stored as logarithms.
        seeds: How many these are, by rank: the compared rank has more than others.
        verdicts: By rank below the largest: the verdict of the fixed-sequence test.
        sentences: By rank below the largest, with numbers.
    """

    precision: str
    smallest: int | None
    means: Mapping[int, Interval]
    seeds: Mapping[int, int]
    verdicts: Mapping[int, Verdict]
    sentences: Mapping[int, str]


@dataclass(frozen=True)
class PrecisionLoss:
    """The quantized precision compared with the other one at a rank.

    Attributes:
        rank: r of the quantized precision.
        other_rank: r of the other one.
        difference: Quantized minus not quantized, in the metric's stored unit, larger is better.
        p_value: Two-sided, of no difference; NaN if there is no test, such as with one seed, or after failed runs.
        verdict: Whether the quantized one is worse by more than the margin.
        sentence: In words.
    """

    rank: int
    other_rank: int
    difference: PairedDifference
    p_value: float
    verdict: Verdict
    sentence: str

    @property
    def told_from_zero(self) -> bool:
        """Whether the difference is more than chance, which is not known without a test."""
        return self.p_value <= ERROR_RATE

    @property
    def why_not_judged(self) -> str:
        """Which failed runs leave the side open on which the difference lies; empty if none do.

        Those that are left may be the good ones of their precision, so nothing is proven in its favor.
        """
        return _why_not_judged(self.difference)

    @property
    def test(self) -> str:
        """What the test of no difference says, or why there is none, as a sentence."""
        if self.why_not_judged:
            sentence = f"Whether the difference is more than chance is not judged: {self.why_not_judged}"
            return f"{sentence}, and those that are left may be its good ones."
        if math.isnan(self.p_value):
            return f"The difference is not tested: {self.difference.note}."
        return f"The difference is {'' if self.told_from_zero else 'not '}told from zero (p = {self.p_value:.3g})."

    @property
    def is_loss(self) -> bool:
        """Whether the quantized precision is worse by more than chance, so that there is something to buy back."""
        return self.told_from_zero and self.difference.interval.value < 0

    @property
    def why_no_loss(self) -> str:
        """Why nothing can be bought back, as a sentence, unless `is_loss`."""
        if self.why_not_judged:
            sentence = f"The loss by quantization is not judged ({self.why_not_judged})"
            return f"{sentence}, so it is not known whether there is anything to buy back."
        if math.isnan(self.p_value):
            sentence = f"The loss by quantization is not tested ({self.difference.note})"
            return f"{sentence}, so it is not known whether there is anything to buy back."
        if self.told_from_zero:
            return "Quantization makes the metric better, told from zero, so there is nothing to buy back."
        return "The loss by quantization is not told from zero, so there is no proven loss to buy back."


@dataclass(frozen=True)
class RankThreshold:
    """What ranks show.

    Attributes:
        precisions: The one that is not quantized, then the quantized one.
        compared: Both precisions at the rank that was chosen beforehand, tested alone; `None` if a run is missing.
        losses: By rank, ascending: both precisions at the same rank. Among them is `compared`, where it is not `None`;
            the others have Holm's correction over those that are tested.
        bought_back: The quantized precision at its largest rank, compared with the other one at each smaller rank.
        share: Of the loss at the compared rank, what the largest rank buys back, with its interval over seeds and
            examples; NaN if the compared rank is the largest, or runs are missing.
        share_seeds: The seeds of the share, with which all its three configurations have runs.
        share_failures: Which runs of these configurations failed, in words.
    """

    precisions: tuple[RankOfPrecision, RankOfPrecision]
    compared: PrecisionLoss | None
    losses: tuple[PrecisionLoss, ...]
    bought_back: tuple[PrecisionLoss, ...]
    share: Interval
    share_seeds: tuple[int, ...] = ()
    share_failures: tuple[str, ...] = ()


def find_rank_threshold(diagnosis: Diagnosis, results: StudyResults) -> RankThreshold:
    """Analyzes ranks.

    Args:
        diagnosis: The diagnosis.
        results: What its study measured.

    Returns:
        The threshold of each precision, and what quantization costs at each rank.
    """
    full, quantized = (_of_precision(diagnosis, results, precision) for precision in diagnosis.precisions)
    others = [(rank, rank) for rank in diagnosis.ranks if rank != diagnosis.rank]
    largest = diagnosis.ranks[-1]
    compared = _losses(diagnosis, results, [(diagnosis.rank, diagnosis.rank)])
    losses = (*compared, *_losses(diagnosis, results, others))
    return RankThreshold(
        (full, quantized),
        compared[0] if compared else None,
        tuple(sorted(losses, key=lambda each: each.rank)),
        _losses(diagnosis, results, [(largest, rank) for rank in diagnosis.ranks[:-1]]),
        *_share_of_largest(diagnosis, results),
    )


def _share_of_largest(diagnosis: Diagnosis, results: StudyResults) -> tuple[Interval, tuple[int, ...], tuple[str, ...]]:
    """(quantized at the largest rank - quantized) / (not quantized - quantized), both at the compared rank.

    With its seeds and the failures of the three.
    """
    if diagnosis.rank == diagnosis.ranks[-1]:
        return Interval(float("nan"), float("nan"), float("nan")), (), ()
    places = (
        (diagnosis.full, diagnosis.rank),
        *((diagnosis.quantized, r) for r in (diagnosis.rank, diagnosis.ranks[-1])),
    )
    three = [results.configuration(diagnosis.configuration(*place)) for place in places]
    failures = tuple(each.failures for each in three if each.failures)
    return bought_back_share(*three), tuple(common_seeds(*three)), failures


def analyze_precision(diagnosis: Diagnosis, results: StudyResults, precision: str) -> StudyAnalysis:
    """Analyzes the ranks of a precision as a study of its own, whose reference is the largest rank.

    Args:
        diagnosis: The diagnosis.
        results: Of both precisions.
        precision: The precision.

    Returns:
        The verdicts.
    """
    names = [diagnosis.configuration(precision, rank) for rank in diagnosis.ranks]
    own = replace(
        results,
        configurations=[results.configuration(name) for name in names],
        reference=names[-1],
        sequence=names[-2::-1],
        claims=(),
        truncated=(),
    )
    return analyze_study(own)


def _of_precision(diagnosis: Diagnosis, results: StudyResults, precision: str) -> RankOfPrecision:
    analysis = analyze_precision(diagnosis, results, precision)
    by_name = {diagnosis.configuration(precision, rank): rank for rank in diagnosis.ranks}
    found = {by_name[each.name]: each for each in analysis.comparisons}
    measured = {rank: results.configuration(name) for name, rank in by_name.items()}
    smallest = analysis.smallest_sufficient
    return RankOfPrecision(
        precision,
        None if smallest is None else by_name[smallest],
        {rank: each.shown_interval(results.metric) for rank, each in measured.items()},
        {rank: len(each.values) for rank, each in measured.items()},
        {rank: each.verdict for rank, each in found.items()},
        {rank: each.sentence for rank, each in found.items()},
    )


def _losses(diagnosis: Diagnosis, results: StudyResults, pairs: list[tuple[int, int]]) -> tuple[PrecisionLoss, ...]:
    found = []
    for rank, other in pairs:
        own = results.configuration(diagnosis.configuration(diagnosis.quantized, rank))
        reference = results.configuration(diagnosis.configuration(diagnosis.full, other))
        found.append((rank, other, compare(own, reference, results.metric)))
    known = [each for each in found if each[2].seeds]
    margin = results.metric.stored_margin
    # What failed runs leave open has no test, and is no part of a family: p would be 1 by rule.
    differences = [difference for *_, difference in known]
    two_sided = _adjusted([None if _why_not_judged(each) else each.p_value for each in differences], differences)
    above = _adjusted([None if each.failures else each.p_value_above(-margin) for each in differences], differences)
    below = _adjusted(
        [None if each.failures_of_other else each.p_value_below(-margin) for each in differences], differences
    )
    share = holm_share([p_value for p_value in above if not math.isnan(p_value)])
    return tuple(
        _loss(diagnosis, results, each, p_value, is_above <= ERROR_RATE, is_below <= ERROR_RATE, share)
        for each, p_value, is_above, is_below in zip(known, two_sided, above, below, strict=True)
    )


def _adjusted(p_values: Sequence[float | None], differences: Sequence[PairedDifference]) -> list[float]:
    """Adjusts the p values of what is tested; NaN for the others, which are no part of the family."""
    counts = [p is not None and difference.is_tested for p, difference in zip(p_values, differences, strict=True)]
    adjusted = holm([1.0 if p is None else p for p in p_values], counts)
    return [p if is_tested else math.nan for p, is_tested in zip(adjusted, counts, strict=True)]


def _why_not_judged(difference: PairedDifference) -> str:
    """The failures of the side that looks better, which limit what its advantage proves."""
    return difference.failures_of_other if difference.interval.value < 0 else difference.failures


def _loss(
    diagnosis: Diagnosis,
    results: StudyResults,
    pair: tuple[int, int, PairedDifference],
    p_value: float,
    is_not_worse: bool,
    is_worse: bool,
    share: float,
) -> PrecisionLoss:
    rank, other, difference = pair
    verdict = _verdict(difference, is_not_worse=is_not_worse, is_worse=is_worse)
    metric = results.metric
    names = (diagnosis.configuration(diagnosis.quantized, rank), diagnosis.configuration(diagnosis.full, other))
    margin = shown_margin(metric)
    own, reference = names
    sentence = {
        Verdict.IDENTICAL: f"{own} is identical to {reference}",
        Verdict.NOT_WORSE: f"{own} is at least as good as {reference} minus {margin}",
        Verdict.WORSE: f"{own} is worse than {reference} by more than {margin}",
    }.get(verdict, f"{own} against {reference} is undecided at a margin of {margin}")
    sentence += f" ({shown_difference(difference, metric)})"
    if verdict not in {Verdict.IDENTICAL, Verdict.NOT_WORSE, Verdict.WORSE}:
        sentence += f"; missing: {what_is_missing(difference, metric, share)}"
    return PrecisionLoss(rank, other, difference, p_value, verdict, f"{sentence}.")


def _verdict(difference: PairedDifference, *, is_not_worse: bool, is_worse: bool) -> Verdict:
    if difference.identical and is_not_worse:
        return Verdict.IDENTICAL
    if difference.note:
        return Verdict.NOT_ENOUGH_EVIDENCE
    if is_not_worse:
        return Verdict.NOT_WORSE
    return Verdict.WORSE if is_worse else Verdict.UNDECIDED
