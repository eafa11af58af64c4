"""Failure modes, found by rules from what was measured: symptom, evidence, likely cause and remedy of each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lora_lightning.diagnosis.adapter_similarity import AdapterSimilarity
from lora_lightning.diagnosis.base_errors import BaseErrors
from lora_lightning.diagnosis.effects import Direction, Effect, Grouping
from lora_lightning.diagnosis.merge_recovery import DEQUANTIZED, KEPT, MergeRecoveries
from lora_lightning.diagnosis.rank_threshold import RankThreshold
from lora_lightning.diagnosis.sensitivity import Sensitivity
from lora_lightning.diagnosis.specification import FEWEST_MODULES
from lora_lightning.statistics.recovery import Recovery
from lora_lightning.statistics.verdicts import Verdict

SENSITIVE_SHARE, SENSITIVE_TIMES = 0.25, 5.0  # of the joint divergence, and of the median module's
LEAST_DIVERGENCE = 1e-4  # nats; below it, nobody sees a difference
BOTH = 2  # precisions
UNUSED = 0.25  # of the rank
RISE = 1.05  # of the least validation loss


@dataclass(frozen=True)
class FailureMode:
    """Something that goes wrong.

    Attributes:
        name: Of the mode.
        symptom: What one sees.
        evidence: The numbers.
        cause: What is likely behind it.
        remedy: What to try.
    """

    name: str
    symptom: str
    evidence: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Evidence:
    """What rules look at; `None` or empty if it was not measured.

    Attributes:
        ranks: What ranks show.
        similarity: Of adapters.
        errors: Of the base.
        sensitivity: Of modules.
        merges: Of merge targets.
        utilization: At the largest rank, by precision and seed: the share of the rank that the adapter uses.
        skipped: The modules that the quantized precision leaves unquantized anyway.
        validation_losses: At the compared rank, by precision and seed, of seeds that both precisions have: the curve,
            (2, points): steps and losses.
        rounds_inputs: Whether quantized layers round their inputs, too, as those of 8 bits do.
    """

    ranks: RankThreshold | None = None
    similarity: AdapterSimilarity | None = None
    errors: BaseErrors | None = None
    sensitivity: Sensitivity | None = None
    merges: MergeRecoveries | None = None
    utilization: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    validation_losses: Mapping[str, Mapping[int, NDArray[np.float64]]] = field(default_factory=dict)
    rounds_inputs: bool = False


def find_failure_modes(evidence: Evidence) -> tuple[FailureMode, ...]:
    """Applies every rule.

    Args:
        evidence: What was measured.

    Returns:
        The failure modes that were found.
    """
    return tuple(found for rule in RULES if (found := rule(evidence)) is not None)


def unchecked_failure_modes(evidence: Evidence) -> tuple[str, ...]:
    """Names the failure modes whose rules lack what they need, so that not finding them means nothing.

    Args:
        evidence: What was measured.

    Returns:
        Names, as in `FailureMode`.
    """
    similarity, sensitivity = evidence.similarity, evidence.sensitivity
    dequantized = _dequantized_merge(evidence.merges)
    decided = {Verdict.IDENTICAL, Verdict.NOT_WORSE, Verdict.WORSE, Verdict.UNDECIDED, Verdict.NOT_TESTED}
    precisions = evidence.ranks.precisions if evidence.ranks is not None else ()
    singles = [] if sensitivity is None else _known_singles(sensitivity)
    checked = {
        "insufficient rank": bool(precisions)
        and all(each.verdicts and each.verdicts[max(each.verdicts)] in decided for each in precisions),
        "divergence beyond seed noise": similarity is not None and math.isfinite(similarity.against_seeds.low),
        "merge drift": dequantized is not None and dequantized.has_gain,
        "sensitive layer": len(singles) >= FEWEST_MODULES,
        "unused rank": len(evidence.utilization) == BOTH and all(evidence.utilization.values()),
        "dead adapter": similarity is not None,
        "pad token outside the vocabulary": evidence.errors is not None,
        "overfitting": len(evidence.validation_losses) == BOTH
        and all(map(_with_several_points, evidence.validation_losses.values())),
        "scaling that differs": similarity is not None,
    }
    return tuple(name for name, is_checked in checked.items() if not is_checked)


def undecided_failure_modes(evidence: Evidence) -> tuple[str, ...]:
    """Names the failure modes that were looked for, and that the data neither show nor rule out.

    Args:
        evidence: What was measured.

    Returns:
        Names, as in `FailureMode`, without those of `unchecked_failure_modes`.
    """
    ranks, found = evidence.ranks, evidence.similarity
    last = (
        [each.verdicts[max(each.verdicts)] for each in ranks.precisions if each.verdicts] if ranks is not None else []
    )
    merged, worst = _dequantized_merge(evidence.merges), _worst_single(evidence)
    is_open = {
        "insufficient rank": insufficient_rank(evidence) is None
        and any(verdict in {Verdict.UNDECIDED, Verdict.NOT_TESTED} for verdict in last),
        "divergence beyond seed noise": found is not None and found.against_seeds.low <= 0 <= found.against_seeds.high,
        "merge drift": merge_drift(evidence) is None and merged is not None and not merged.ratio.low >= KEPT,
        "sensitive layer": sensitive_layer(evidence) is None
        and worst is not None
        and worst.divergence.value >= _least_divergence(evidence),
    }
    unchecked = unchecked_failure_modes(evidence)
    return tuple(name for name, neither in is_open.items() if neither and name not in unchecked)


def _worst_single(evidence: Evidence) -> Effect | None:
    """The single module with the most divergence, if enough were measured for a rule."""
    singles = [] if evidence.sensitivity is None else _known_singles(evidence.sensitivity)
    return max(singles, key=lambda each: each.divergence.value) if len(singles) >= FEWEST_MODULES else None


def _least_divergence(evidence: Evidence) -> float:
    """From which divergence on a module is sensitive; of evidence that has a worst one."""
    if evidence.sensitivity is None:
        return math.inf
    usual = median(each.divergence.value for each in _known_singles(evidence.sensitivity))
    joint = evidence.sensitivity.joint.divergence.value
    return max(SENSITIVE_SHARE * joint, SENSITIVE_TIMES * usual, LEAST_DIVERGENCE)


def _known_singles(sensitivity: Sensitivity) -> list[Effect]:
    """Effects of single modules whose divergence is known."""
    return [
        each
        for each in sensitivity.effects
        if each.grouping is Grouping.MODULE and each.direction is Direction.IN and math.isfinite(each.divergence.value)
    ]


def insufficient_rank(evidence: Evidence) -> FailureMode | None:
    """The largest rank is proven better than the next one, so a larger one may be better still."""
    precisions = evidence.ranks.precisions if evidence.ranks is not None else ()
    gaining = [each for each in precisions if each.verdicts and each.verdicts[max(each.verdicts)] is Verdict.WORSE]
    if not gaining:
        return None
    largest = max(gaining[0].means)
    return FailureMode(
        "insufficient rank",
        f"the last step in rank is still a gain for {' and for '.join(each.precision for each in gaining)}",
        " ".join(each.sentences[max(each.verdicts)] for each in gaining),
        "the task needs more directions than the adapters have",
        f"add ranks above {largest}, each with a learning rate that suits it",
    )


def divergence_beyond_seeds(evidence: Evidence) -> FailureMode | None:
    """The precision changes adapters more than another seed does."""
    found = evidence.similarity
    if found is None or not found.against_seeds.low > 0:
        return None
    return FailureMode(
        "divergence beyond seed noise",
        "the precision changes adapters more than another seed does",
        f"squared distance by precision minus by seed: {found.against_seeds}",
        "the quantized base leads training elsewhere: its error, or options that differ beside the precision",
        "compare the configs of the runs, then leave the most sensitive modules unquantized, or use more bits",
    )


def merge_drift(evidence: Evidence) -> FailureMode | None:
    """The merge into the dequantized weights, which should lose nothing, loses a part of the adapter's gain.

    Other targets change the base or round the update: that is expected, nobody asked for them, and it is only shown.
    """
    found = _dequantized_merge(evidence.merges)
    if found is None or not found.has_gain or not (found.ratio.high < 1 and found.ratio.value < KEPT):
        return None
    return FailureMode(
        "merge drift",
        f"merged into the {DEQUANTIZED} weights, the model is not what was trained",
        f"{DEQUANTIZED}: {found}",
        "8-bit layers round their inputs, and the merged model, for which the adapter was not trained, does not"
        if evidence.rounds_inputs
        else "the merged base is not the one that the adapter was trained on, or the sum is rounded to few bits",
        "keep the adapter apart, or merge in a wider dtype",
    )


def _dequantized_merge(merges: MergeRecoveries | None) -> Recovery | None:
    targets = () if merges is None else merges.targets
    return next((each.recovery for each in targets if each.target == DEQUANTIZED), None)


def sensitive_layer(evidence: Evidence) -> FailureMode | None:
    """One module causes much of what quantizing all of them does.

    The median is of the modules that were quantized singly, those with the largest scores. That of all modules is
    smaller, so the rule may overlook a layer, and says of which modules its median is.
    """
    worst = _worst_single(evidence)
    if evidence.sensitivity is None or worst is None:
        return None
    singles = _known_singles(evidence.sensitivity)
    joint, usual = evidence.sensitivity.joint.divergence, median(each.divergence.value for each in singles)
    every = len(evidence.sensitivity.scores)
    of_which = "" if len(singles) == every else f" of the {len(singles)} with the largest scores of {every}"
    found = worst.divergence
    if not (found.low > 0 and found.value >= _least_divergence(evidence)):
        return None
    return FailureMode(
        "sensitive layer",
        f"quantizing {worst.group} alone causes {found.value / joint.value:.0%} of what quantizing everything causes",
        f"KL divergence {found} nats, of all modules together {joint}; of the median module{of_which} {usual:.3g}",
        "outliers in its weight, or inputs that amplify its error",
        "leave it unquantized: model.quantization.skip_modules: "
        f"[{', '.join((*evidence.skipped, worst.group))}]",  # the option replaces what is skipped already
    )


def unused_rank(evidence: Evidence) -> FailureMode | None:
    """With each seed, the effective rank of a precision's updates is below a quarter of r, as a mean over layers.

    It says how evenly singular values are spread and not that small ones may be left out.
    """
    unused = {name: shares for name, shares in evidence.utilization.items() if shares and max(shares.values()) < UNUSED}
    if not unused:
        return None
    named = [
        f"{name}: {', '.join(f'{share:.2f} with seed {seed}' for seed, share in shares.items())}"
        for name, shares in unused.items()
    ]
    return FailureMode(
        "unused rank",
        f"the updates of {' and of '.join(unused)} at the largest rank lie mostly in few directions",
        f"effective rank as a share of r, mean over layers; {'; '.join(named)}",
        "the task needs few directions, or the learning rate is too small to fill more",
        "try a smaller rank, and take it if the fixed-sequence test proves it to be enough: directions with small "
        "singular values may still count",
    )


def dead_adapter(evidence: Evidence) -> FailureMode | None:
    """The update of a layer is zero."""
    dead = evidence.similarity.zero_modules if evidence.similarity is not None else ()
    if not dead:
        return None
    return FailureMode(
        "dead adapter",
        "an adapter has not moved from dW = 0",
        f"{len(dead)} updates are zero, {dead[0]} first",
        "no gradient reaches the layer: the model does not call it, or something detaches its output",
        "leave it out of target_modules, or find out why it gets no gradient",
    )


def pad_outside_vocabulary(evidence: Evidence) -> FailureMode | None:
    """The id of the padding token has no embedding."""
    errors = evidence.errors
    if errors is None or not 0 < errors.vocabulary <= errors.pad_token_id:
        return None
    return FailureMode(
        "pad token outside the vocabulary",
        "padding has no embedding",
        f"pad_token_id {errors.pad_token_id}, {errors.vocabulary} embeddings",
        "a padding token was added to the tokenizer and not to the model",
        "use an existing token, such as the end-of-text token, for padding",
    )


def overfitting(evidence: Evidence) -> FailureMode | None:
    """The validation loss of a precision rises before training ends, in half of its runs or more.

    Each precision is judged by its own runs: together, one could hide the other, or be blamed for it.
    """
    curves = {name: _with_several_points(own) for name, own in evidence.validation_losses.items()}
    risen = {name: {seed: each for seed, each in own.items() if _rises(each)} for name, own in curves.items()}
    found = [name for name, own in risen.items() if own and 2 * len(own) >= len(curves[name])]
    if not found:
        return None
    numbers = [f"{name}: {_risen_curves(risen[name], len(own))}" for name, own in curves.items() if own]
    return FailureMode(
        "overfitting",
        f"the validation loss of {' and of '.join(found)} rises before training ends",
        "; ".join(numbers),
        "more epochs than the data has lessons, or too large a learning rate",
        "train fewer epochs, or add lora_dropout; the best checkpoint is the one that was compared",
    )


def _with_several_points(curves: Mapping[int, NDArray[np.float64]]) -> dict[int, NDArray[np.float64]]:
    """The curves that can rise."""
    return {seed: curve for seed, curve in curves.items() if curve.shape[1] > 1}


def _rises(curve: NDArray[np.float64]) -> bool:
    return bool(curve[1, -1] > RISE * curve[1].min() > 0)


def _risen_curves(risen: Mapping[int, NDArray[np.float64]], runs: int) -> str:
    """Such as `2 of 3 runs, of seed 0 from 0.5 at step 20 to 0.9 at the end`."""
    text = f"{len(risen)} of {runs} runs"
    if not risen:
        return text
    seed, curve = next(iter(risen.items()))
    best, step = curve[1].min(), int(curve[0, int(curve[1].argmin())])
    return f"{text}, of seed {seed} from {best:.4g} at step {step} to {curve[1, -1]:.4g} at the end"


def different_scaling(evidence: Evidence) -> FailureMode | None:
    """The two precisions scale B A differently."""
    scalings = evidence.similarity.scalings if evidence.similarity is not None else {}
    if not scalings:
        return None
    module, (full, quantized) = next(iter(scalings.items()))
    return FailureMode(
        "scaling that differs",
        "the two precisions scale their adapters differently, so they were not trained alike",
        f"{len(scalings)} modules, such as {module}: {full:g} and {quantized:g}",
        "lora_alpha, use_rslora or alpha_pattern differ between the precisions",
        "set them once, outside of the precisions",
    )


RULES: tuple[Callable[[Evidence], FailureMode | None], ...] = (
    insufficient_rank,
    divergence_beyond_seeds,
    merge_drift,
    sensitive_layer,
    unused_rank,
    dead_adapter,
    pad_outside_vocabulary,
    overfitting,
    different_scaling,
)
