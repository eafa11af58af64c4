"""What a diagnosis decides, from what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lora_lightning.diagnosis.adapter_similarity import TELLING_COSINE, AdapterSimilarity
from lora_lightning.diagnosis.failure_modes import FailureMode
from lora_lightning.diagnosis.merge_recovery import DEQUANTIZED, KEPT, MergeRecoveries
from lora_lightning.diagnosis.proof_runs import NOT_STARTED
from lora_lightning.diagnosis.rank_threshold import RankThreshold
from lora_lightning.diagnosis.skip_proof import SkipFinding
from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.recovery import Recovery
from lora_lightning.statistics.verdicts import Verdict

BOUGHT_BACK = 0.5  # of the loss by quantization
RUN = "run the diagnosis, which does it once both precisions have finished runs at the compared rank"
ON_ADAPTERS = {VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED, VerdictName.PRECISIONS_DIFFER}
ADAPTERS_NOT_COMPARED = f"The adapters of the finished runs are not compared yet; {RUN}."


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


def reach_verdicts(
    diagnosis: Diagnosis,
    ranks: RankThreshold | None,
    similarity: AdapterSimilarity | None,
    merges: MergeRecoveries | None,
    skip: SkipFinding | None,
    failures: Sequence[FailureMode],
    unchecked: Sequence[str] = (),
    undecided: Sequence[str] = (),
    why_no_list: str = NOT_STARTED,
    lacking: str = "",
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
        undecided: Names of those whose data neither show nor rule them out.
        why_no_list: Why no list was judged; not used if one was.
        lacking: Which planned seeds of the compared rank have no finished run, as a sentence; empty if all have one.

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
        _skip_list(diagnosis, skip, why_no_list),
        _healthy(failures, unchecked, undecided),
    )
    reached = [DiagnosisVerdict(name, *each) for name, each in zip(VerdictName, found, strict=True)]
    return tuple(_with_lacking(each, lacking) for each in reached)


def _with_lacking(verdict: DiagnosisVerdict, lacking: str) -> DiagnosisVerdict:
    """A verdict on adapters of all seeds says which planned ones it does not rest on."""
    if not lacking or verdict.name not in ON_ADAPTERS or verdict.state is State.MISSING:
        return verdict
    return replace(verdict, sentence=f"{verdict.sentence} {lacking}")


def _not_worse(diagnosis: Diagnosis, ranks: RankThreshold | None) -> tuple[State, str]:
    loss = None if ranks is None else ranks.compared
    if loss is None:
        return State.MISSING, f"No seed has finished runs of both precisions at r = {diagnosis.rank}."
    states = {Verdict.IDENTICAL: State.YES, Verdict.NOT_WORSE: State.YES, Verdict.WORSE: State.NO}
    sentence = f"{loss.sentence} {loss.test}"
    if loss.difference.seeds < (planned := len(diagnosis.seeds)):
        sentence += f" It rests on {loss.difference.seeds} of {planned} seeds: the others lack a finished run of both."
    return states.get(loss.verdict, State.UNDECIDED), sentence


def _against_seeds(similarity: AdapterSimilarity | None) -> tuple[State, str]:
    if similarity is None:
        return State.MISSING, ADAPTERS_NOT_COMPARED
    if math.isnan((interval := similarity.against_seeds).low):
        return State.MISSING, (
            "At least 3 seeds of each precision are needed, of the quantized one seeds of their own (other_seeds)."
        )
    cosine = similarity.seed_cosine
    numbers = f"(squared distance by precision minus by seed: {interval}; no pair starts with the same A; mean cosine "
    numbers += f"of dW of two seeds: {cosine:.3f})."
    if interval.low > 0:
        return State.NO, f"The precision changes adapters more than another seed does {numbers}"
    if not similarity.seeds_are_telling:
        numbers += f" Seeds do not tell: where adapters of two seeds have a cosine below {TELLING_COSINE:g}, another "
        numbers += "seed changes so much that the difference would be below 0 even if adapters of the two precisions "
        numbers += "had nothing in common."
    elif interval.high < 0:
        return State.YES, f"The precision changes adapters less than another seed does {numbers}"
    return State.UNDECIDED, f"Whether the precision changes adapters less than another seed is undecided {numbers}"


def _precisions_differ(similarity: AdapterSimilarity | None) -> tuple[State, str]:
    if similarity is None:
        return State.MISSING, ADAPTERS_NOT_COMPARED
    test = similarity.permutation
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
    next_rank = diagnosis.ranks[-2]  # the first one that is tested; without a proof, no smaller one is
    whys = [each.sentences[next_rank] for each in (full, quantized) if each.smallest is None]
    sentence = " ".join([sentence, *whys])
    if quantized.smallest is not None:
        return State.YES, sentence
    states = {Verdict.WORSE: State.NO, Verdict.NOT_ENOUGH_EVIDENCE: State.MISSING}
    return states.get(quantized.verdicts[next_rank], State.UNDECIDED), sentence


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
        return State.MISSING, loss.why_no_loss
    if not ranks.share_seeds:
        sentence = f"No seed has finished runs of {diagnosis.quantized} at r = {largest} and of both precisions at "
        return State.MISSING, f"{sentence}r = {diagnosis.rank}."
    sentence = f"{diagnosis.quantized} with r = {largest} buys back {ranks.share} of what quantization loses at "
    sentence += f"r = {diagnosis.rank}, with the seeds {', '.join(map(str, ranks.share_seeds))}"
    lacking = loss.difference.seeds - len(ranks.share_seeds)
    sentence += f"; {lacking} more that tell the loss have no run at r = {largest}." if lacking else "."
    if ranks.share_failures:  # the runs that are left may be the good ones
        return State.UNDECIDED, f"{sentence} Nothing is proven: {' and '.join(ranks.share_failures)}."
    return _of_share(ranks.share), sentence


def _of_share(share: Interval) -> State:
    if share.low >= BOUGHT_BACK:
        return State.YES
    return State.NO if share.high < BOUGHT_BACK else State.UNDECIDED


def _merge_keeps_gain(merges: MergeRecoveries | None) -> tuple[State, str]:
    recoveries = {} if merges is None else {each.target: each.recovery for each in merges.targets}
    found: Recovery | None = recoveries.get(DEQUANTIZED)
    if merges is None:
        return State.MISSING, f"No merge is measured yet; {RUN}."
    if found is None:
        return State.MISSING, "Merges are not judged: this task has no score of each validation example."
    sentence = f"Merged into the dequantized weights, the adapter of {merges.run}: {found}."
    if found.judged and not found.has_gain:
        sentence = f"The adapter of {merges.run} has no gain over its base that a merge could keep (gain {found.gain})."
        return State.UNDECIDED, sentence
    if not found.judged:
        return State.UNDECIDED, sentence
    if found.ratio.low >= KEPT:
        return State.YES, sentence
    return State.NO if found.ratio.high < KEPT else State.UNDECIDED, sentence


def _skip_list(diagnosis: Diagnosis, skip: SkipFinding | None, why_no_list: str) -> tuple[State, str]:
    if skip is None:
        return State.MISSING, why_no_list
    if skip.proven:
        return State.YES, skip.sentence
    wanted = math.nan if diagnosis.proof is None else diagnosis.proof.bought_back
    if skip.bought_back.high < wanted:
        return State.NO, f"{skip.sentence} That is less than the {wanted:.0%} that it has to buy back."
    return State.UNDECIDED, skip.sentence


def _healthy(failures: Sequence[FailureMode], unchecked: Sequence[str], undecided: Sequence[str]) -> tuple[State, str]:
    if failures:
        return State.NO, f"Failure modes: {', '.join(each.name for each in failures)}."
    reasons = [f"there is no data to look for {', '.join(unchecked)}"] if unchecked else []
    reasons += [f"the data do not decide about {', '.join(undecided)}"] if undecided else []
    if reasons:
        state = State.MISSING if unchecked else State.UNDECIDED
        return state, f"No failure mode was found, but {', and '.join(reasons)}."
    return State.YES, "No failure mode was found."
