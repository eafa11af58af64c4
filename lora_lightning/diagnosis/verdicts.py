"""What a diagnosis decides, and when to use which precision, from what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lora_lightning.diagnosis.adapter_similarity import TELLING_COSINE, AdapterSimilarity
from lora_lightning.diagnosis.costs import WEIGHTS, CostTable
from lora_lightning.diagnosis.failure_modes import FailureMode
from lora_lightning.diagnosis.merge_recovery import MergeRecoveries
from lora_lightning.diagnosis.proof_runs import NOT_STARTED
from lora_lightning.diagnosis.rank_threshold import RankThreshold
from lora_lightning.diagnosis.skip_proof import SkipFinding
from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.recovery import Recovery
from lora_lightning.statistics.verdicts import Verdict

KEPT = 0.98  # of the adapter's gain
MATTERS = 5.0  # percent of a cost
BOUGHT_BACK = 0.5  # of the loss by quantization


class State(StrEnum):
    """Whether a verdict is reached.

    Attributes:
        YES: What its name says is proven.
        NO: The opposite is proven.
        UNDECIDED: Neither is.
        MISSING: What it needs was not measured.
    """

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"
    MISSING = "not measured"


@dataclass(frozen=True)
class DiagnosisVerdict:
    """A verdict.

    Attributes:
        name: Its name.
        state: Whether it is reached.
        sentence: With its numbers.
    """

    name: VerdictName
    state: State
    sentence: str


@dataclass(frozen=True)
class Advice:
    """When to use which precision.

    Attributes:
        use_quantized: Reasons for the quantized precision.
        use_full: Reasons for the other one.
        missing: What is not decided.
    """

    use_quantized: tuple[str, ...]
    use_full: tuple[str, ...]
    missing: tuple[str, ...]


def reach_verdicts(
    diagnosis: Diagnosis,
    ranks: RankThreshold | None,
    similarity: AdapterSimilarity | None,
    merges: MergeRecoveries | None,
    skip: SkipFinding | None,
    failures: Sequence[FailureMode],
    unchecked: Sequence[str] = (),
    why_no_list: str = NOT_STARTED,
) -> tuple[DiagnosisVerdict, ...]:
    """Reaches all verdicts.

    Args:
        diagnosis: The diagnosis.
        ranks: What ranks show.
        similarity: Of adapters.
        merges: Of merge targets.
        skip: Of the list of modules to skip.
        failures: The failure modes that were found.
        unchecked: Names of failure modes whose rules lack data.
        why_no_list: Why no list was judged; not used if one was.

    Returns:
        One verdict for each name.
    """
    found = (
        _not_worse(diagnosis, ranks),
        _against_seeds(similarity),
        _precisions_differ(similarity),
        _enough_rank(diagnosis, ranks),
        _more_rank(diagnosis, ranks),
        _merge_keeps_gain(merges),
        _skip_list(skip, why_no_list),
        _healthy(failures, unchecked),
    )
    return tuple(DiagnosisVerdict(name, *each) for name, each in zip(VerdictName, found, strict=True))


def _not_worse(diagnosis: Diagnosis, ranks: RankThreshold | None) -> tuple[State, str]:
    loss = None if ranks is None else ranks.compared
    if loss is None:
        return State.MISSING, f"No seed has finished runs of both precisions at r = {diagnosis.rank}."
    states = {Verdict.IDENTICAL: State.YES, Verdict.NOT_WORSE: State.YES, Verdict.WORSE: State.NO}
    told = "told from zero" if loss.told_from_zero else "not told from zero"
    sentence = f"{loss.sentence} The difference is {told} (p = {loss.p_value:.3g})."
    return states.get(loss.verdict, State.UNDECIDED), sentence


def _against_seeds(similarity: AdapterSimilarity | None) -> tuple[State, str]:
    if similarity is None or math.isnan((interval := similarity.against_seeds).low):
        return State.MISSING, (
            "At least 3 seeds of each precision are needed, of the quantized one seeds of their own (other_seeds)."
        )
    cosine = similarity.seed_cosine
    numbers = f"(squared distance by precision minus by seed: {interval}; no pair starts with the same A; mean cosine "
    numbers += f"of dW of two seeds: {cosine:.3f})."
    if not similarity.seeds_are_telling:
        numbers += f" This says little: where adapters of two seeds have a cosine below {TELLING_COSINE:g}, another "
        numbers += "seed changes so much that the answer would be yes even if adapters of the two precisions had "
        numbers += "nothing in common."
    if interval.high < 0:
        return State.YES, f"The precision changes adapters less than another seed does {numbers}"
    if interval.low > 0:
        return State.NO, f"The precision changes adapters more than another seed does {numbers}"
    return State.UNDECIDED, f"Whether the precision changes adapters less than another seed is undecided {numbers}"


def _precisions_differ(similarity: AdapterSimilarity | None) -> tuple[State, str]:
    test = None if similarity is None else similarity.permutation
    if test is None:
        return State.MISSING, "Adapters of the quantized precision with seeds of their own (other_seeds) are needed."
    kind = (
        "exact permutation of labels" if test.is_exact else "random permutations of labels, that of the data included"
    )
    numbers = f"({kind}, p = {test.p_value:.3g} of {test.splits:,} splits"
    if test.p_value <= ERROR_RATE:
        return State.YES, f"Adapters of the two precisions differ by more than those of one precision {numbers})."
    least = f", least possible {test.least_p_value:.3g})"
    return State.UNDECIDED, f"Adapters of the two precisions are not told apart {numbers}{least}."


def _enough_rank(diagnosis: Diagnosis, ranks: RankThreshold | None) -> tuple[State, str]:
    if ranks is None or len(diagnosis.ranks) == 1:
        return State.MISSING, "There are no runs of several ranks."
    full, quantized = ranks.precisions
    smallest = {each.precision: each.smallest for each in (full, quantized)}
    sentence = "; ".join(
        f"for {name} r = {rank} is enough"
        if rank is not None
        else f"for {name} no rank below r = {diagnosis.ranks[-1]} is proven to be enough"
        for name, rank in smallest.items()
    )
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    if quantized.smallest is not None:
        return State.YES, sentence
    worse = quantized.verdicts.get(diagnosis.ranks[-2]) is Verdict.WORSE
    return State.NO if worse else State.UNDECIDED, sentence


def _more_rank(diagnosis: Diagnosis, ranks: RankThreshold | None) -> tuple[State, str]:
    loss, largest = None if ranks is None else ranks.compared, diagnosis.ranks[-1]
    if ranks is None or loss is None:
        return State.MISSING, f"No seed has finished runs of both precisions at r = {diagnosis.rank}."
    if diagnosis.rank == largest:
        return (
            State.MISSING,
            f"compare.rank is the largest rank, r = {largest}, so no larger one could buy anything back.",
        )
    if not loss.is_loss:
        return State.MISSING, "The loss by quantization is not told from zero, so there is nothing to buy back."
    sentence = f"{diagnosis.quantized} with r = {largest} buys back {ranks.share} of what quantization loses at "
    sentence += f"r = {diagnosis.rank}."
    if ranks.share.low >= BOUGHT_BACK:
        return State.YES, sentence
    return State.NO if ranks.share.high < BOUGHT_BACK else State.UNDECIDED, sentence


def _merge_keeps_gain(merges: MergeRecoveries | None) -> tuple[State, str]:
    recoveries = {} if merges is None else {each.target: each.recovery for each in merges.targets}
    found: Recovery | None = recoveries.get("dequantized")
    if merges is None or found is None:
        return State.MISSING, "No merge was measured."
    sentence = f"Merged into the dequantized weights, the adapter of {merges.run}: {found}."
    if found.judged and not found.has_gain:
        sentence = f"The adapter of {merges.run} has no gain over its base that a merge could keep (gain {found.gain})."
        return State.UNDECIDED, sentence
    if not found.judged:
        return State.UNDECIDED, sentence
    if found.ratio.low >= KEPT:
        return State.YES, sentence
    return State.NO if found.ratio.high < KEPT else State.UNDECIDED, sentence


def _skip_list(skip: SkipFinding | None, why_no_list: str) -> tuple[State, str]:
    if skip is None:
        return State.MISSING, why_no_list
    return State.YES if skip.proven else State.UNDECIDED, skip.sentence


def _healthy(failures: Sequence[FailureMode], unchecked: Sequence[str]) -> tuple[State, str]:
    if failures:
        return State.NO, f"Failure modes: {', '.join(each.name for each in failures)}."
    if unchecked:
        return State.MISSING, f"No failure mode was found, but there is no data to look for {', '.join(unchecked)}."
    return State.YES, "No failure mode was found."


def advise(
    diagnosis: Diagnosis, verdicts: Sequence[DiagnosisVerdict], costs: CostTable, merges: MergeRecoveries | None
) -> Advice:
    """Says when to use which precision.

    Args:
        diagnosis: The diagnosis.
        verdicts: Its verdicts.
        costs: What configurations cost.
        merges: Of merge targets.

    Returns:
        Reasons, each with its numbers. Costs are listed whether or not quality is decided, which they say.
    """
    by_name = {each.name: each for each in verdicts}
    quality, skip = by_name[VerdictName.NOT_WORSE], by_name[VerdictName.SKIP_LIST_PROVEN]
    saved = _savings(diagnosis, costs)
    use_quantized, use_full = [], []
    missing = []
    if not saved.cheaper:
        missing.append(f"It is not measured that {diagnosis.quantized} saves {MATTERS:g} % of memory or time.")
    elif quality.state is State.YES:
        use_quantized.append(f"{saved.cheaper} counts: {quality.sentence}")
    else:
        doubt = "which is lost" if quality.state is State.NO else "of which a loss is not ruled out"
        use_quantized.append(f"{saved.cheaper} counts more than quality, {doubt}")
    if quality.state is State.NO:
        use_full.append(f"quality counts: {quality.sentence}")
    if skip.state is State.YES:
        use_quantized.append(f"sensitive modules may stay unquantized: {skip.sentence}")
    if saved.dearer:
        use_full.append(f"{saved.dearer} counts")
    if merges is not None and _loses(merges, "requantized"):
        use_quantized.append(
            "its adapter is kept apart or merged into the dequantized base: quantizing the merged model again loses a "
            "part of the adapter's gain"
        )
    missing += [
        each.sentence
        for each in verdicts
        if each.state in {State.UNDECIDED, State.MISSING} and not (each is skip and diagnosis.proof is None)
    ]
    return Advice(tuple(use_quantized), tuple(use_full), tuple(missing))


@dataclass(frozen=True)
class _Savings:
    cheaper: str
    dearer: str


def _savings(diagnosis: Diagnosis, costs: CostTable) -> _Savings:
    """What the quantized precision saves, and what it costs more, at the compared rank."""
    name = diagnosis.configuration(diagnosis.quantized, diagnosis.rank)
    row = next((row for row in costs.rows if row.configuration == name), None)
    shown = {WEIGHTS: "memory of the weights", "peak_memory_bytes": "peak memory", "seconds_per_step": "time a step"}
    known = {} if row is None else {shown[cost]: value for cost, value in row.savings.items() if cost in shown}
    told = {cost: each for cost, each in known.items() if not each.low <= 0 <= each.high}  # or of one seed
    cheaper = [f"{cost} ({_percent(each, 'less')})" for cost, each in told.items() if each.value >= MATTERS]
    more = {cost: Interval(-each.value, -each.high, -each.low) for cost, each in told.items()}
    dearer = [f"{cost} ({_percent(each, 'more')})" for cost, each in more.items() if each.value >= MATTERS]
    return _Savings(" or ".join(cheaper), " or ".join(dearer))


def _percent(found: Interval, word: str) -> str:
    ends = f", 95 % interval {found.low:.0f} to {found.high:.0f}" if found.low < found.high else ""
    return f"{found.value:.0f} % {word}{ends}"


def _loses(merges: MergeRecoveries, target: str) -> bool:
    found = next((each.recovery for each in merges.targets if each.target == target), None)
    return found is not None and found.has_gain and found.ratio.high < KEPT
