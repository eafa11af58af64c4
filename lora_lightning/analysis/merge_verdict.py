"""Whether a merge that a monitor tries is faithful; `artefacts.merge_gate` decides about a folder that is shipped.

A merge in 16 bits rounds every weight, and a tolerance that lets this pass lets real faults pass too. So a merge is
compared with others of the same model that are intact and differ in their rounding alone: what it changes beyond them
is a fault.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.compat.bitsandbytes import compute_dtype, dequantized_dtype
from lora_lightning.lora.delta import adapted_layers, adapted_parameter, adapter_factors
from lora_lightning.lora.quantized import quantized_bits
from lora_lightning.statistics import Recovery

# Largest difference of two logits, relative to the largest logit, that rounding explains in a deep model: some hundred
# units in the last place of float32, some ten of the 16-bit dtypes. int8 stands for 8-bit bases, whose inputs are
# rounded to 8 bits too. It bounds what may count as an intact merge.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.int8: 5e-2}
NO_OP = 0.01  # share of the tolerance below which two models are the same
EXACT = ("exported", "base", "dequantized")  # merges that must change nothing
MORE_NOISE = 3.0  # times the intact merges' root mean square difference, or lost share
LEAST_LOSS = 2e-3  # of the adapter's effect on the logits
DEVIATIONS = 4.0  # of what rounding may take of the effect by chance
LEAST_DIVERGENCE = 1e-12  # nats; what float64 leaves of equal probabilities
FIRM = 1.5  # margins that a decision needs, in largest differences of an intact merge


@dataclass(frozen=True)
class Noise:
    """What rounding alone does in a merge of this model.

    Attributes:
        logit: The largest difference of a logit.
        rms: The root mean square difference of the logits.
        kl_divergence: In nats; NaN without distributions.
        lost_share: The largest share of the adapter's effect that rounding takes or adds.
        change: The largest change of the mean score of the examples.
    """

    logit: float
    rms: float
    kl_divergence: float
    lost_share: float
    change: float


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes:
        recommended: The target that changes least.
        sentence: What to do, with the reason.
        failure: What is wrong and how to fix it; `None` if merging is faithful.
    """

    recommended: str
    sentence: str
    failure: str | None


def noise_of(intact: Sequence[OutputDifference], changes: Sequence[float], dtype: torch.dtype) -> Noise:
    """The noise of intact merges.

    Args:
        intact: Of several merges of the same model from the adapted model, each rounded in another way; at least one.
        changes: By how much each changes the mean score of the examples.
        dtype: In which the model computes.

    Returns:
        The largest of each kind; of logits at least what it takes to round the largest one.
    """
    unit = torch.finfo(dtype).eps * intact[0].largest_logit
    return Noise(
        logit=max(unit, *(difference.max_logit_difference for difference in intact)),
        rms=max(unit / 4, *(difference.rms_logit_difference for difference in intact)),
        kl_divergence=max(difference.kl_divergence for difference in intact),
        lost_share=max(abs(difference.lost_share) for difference in intact),
        change=max((abs(change) for change in changes if not math.isnan(change)), default=0.0),
    )


def find_merge_fault(difference: OutputDifference, noise: Noise, recovery: Recovery | None = None) -> str | None:
    """What a merge changes beyond the rounding of an intact one.

    In this order: decisions flip whose margin rounding cannot cross (`OutputComparison` with the noise counts them);
    the adapter's effect on the logits is smaller or larger; the logits move more; the recovery ratio's interval
    excludes 1, if it is judged; the divergence of the probabilities is larger.

    Args:
        difference: Of the merged model from the adapted one.
        noise: Of intact merges of the same model, in the same precision.
        recovery: Of the merged model; `None` without labels.

    Returns:
        A clause, such as `3 of 200 decisions flip that rounding cannot`; `None` if nothing exceeds rounding.
    """
    if not difference.max_logit_difference < math.inf:
        return f"logits move by up to {difference.max_logit_difference}"
    if difference.firm_flips:
        return f"{difference.firm_flips} of {difference.firm_decisions} decisions flip that rounding cannot"
    if abs(difference.lost_share) > _allowed_loss(difference, noise):
        kept = 100 * (1 - difference.lost_share)
        return f"{kept:.4g} % of the adapter's effect on the logits is there"
    if difference.rms_logit_difference > MORE_NOISE * noise.rms:
        return f"the logits move {_times(difference.rms_logit_difference, noise.rms)} as much as by rounding"
    return _less_gain(difference, noise, recovery)


def _allowed_loss(difference: OutputDifference, noise: Noise) -> float:
    """The share of the adapter's effect that rounding may take; by chance more, the fewer logits there are."""
    by_chance = DEVIATIONS * noise.rms / difference.effect_norm
    return max(LEAST_LOSS, MORE_NOISE * noise.lost_share, 0.0 if math.isnan(by_chance) else by_chance)


def _less_gain(difference: OutputDifference, noise: Noise, recovery: Recovery | None) -> str | None:
    if recovery is not None and recovery.judged:
        is_noise = recovery.ratio.contains(1.0) or abs(recovery.change.value) <= MORE_NOISE * noise.change
        return None if is_noise else f"the adapter's gain is not what it was: {recovery}"
    if difference.kl_divergence > MORE_NOISE**2 * max(noise.kl_divergence, LEAST_DIVERGENCE):
        return (
            f"the probabilities diverge {_times(difference.kl_divergence, noise.kl_divergence)} as much as by rounding"
        )
    return None


def _times(value: float, noise: float) -> str:
    return f"{value / noise if noise else math.inf:.2g} times"


def merge_verdict(
    differences: Mapping[str, OutputDifference],
    from_base: Mapping[str, OutputDifference],
    adapter: OutputDifference,
    noise: Noise,
    tolerance: float,
    ceiling: float | None = None,
    recoveries: Mapping[str, Recovery] | None = None,
    weight_fault: str | None = None,
) -> Verdict:
    """Decides whether merging is faithful, and which target to merge into.

    Args:
        differences: Of each merged model from the adapted one, by target; `exported` is the exported folder.
        from_base: Of each merged model from the base without adapters.
        adapter: Of the base from the adapted model.
        noise: Of intact merges.
        tolerance: The default one, relative to the largest logit; a hundredth of it is no difference at all.
        ceiling: Relative to the largest logit: no merge, intact or not, may move a logit by more; `None` for the
            tolerance. Infinity if the intact merges are beyond doubt, because their weights were verified.
        recoveries: By target, if there are labels.
        weight_fault: What is wrong with the exported folder's weights, as a clause.

    Returns:
        The verdict.
    """
    recoveries = recoveries or {}
    largest = max(1.0, adapter.largest_logit)
    limits = (NO_OP * tolerance * largest, (tolerance if ceiling is None else ceiling) * largest)
    in_memory = {target: found for target, found in differences.items() if target != "exported"}
    # NaN is never the smallest.
    recommended = min(in_memory, key=lambda target: _or_infinity(in_memory[target].mean_logit_difference))
    best, *others = sorted(in_memory, key=lambda target: target != recommended)
    sentence = f"merge into the {best} weights: {describe_difference(differences[best])}"
    if best in recoveries:
        sentence += f", {recoveries[best]}"
    if others:
        sentence += " (" + "; ".join(f"{other}: {describe_difference(differences[other])}" for other in others) + ")"
    sentence += f"; the adapter itself: {describe_difference(adapter)}"
    failure = _no_effect(adapter, limits[0])
    if failure is None and weight_fault is not None:
        failure = f"the exported folder is not what the best checkpoint holds: {weight_fault}; {RE_EXPORT}"
    for target in EXACT:
        if failure is None and target in differences:
            recovery = recoveries.get(target)
            failure = _failure(target, differences[target], from_base[target], adapter, noise, limits, recovery)
    return Verdict(recommended, f"{sentence}.", failure)


RE_EXPORT = "do not ship it, and look for what wrote into the folder or changed the base since training"


def _no_effect(adapter: OutputDifference, nothing: float) -> str | None:
    if adapter.max_logit_difference > nothing:
        return None
    return (
        f"the adapter changes nothing: without it no logit moves by more than {adapter.max_logit_difference:.1e}; "
        "check that it was trained (learning rate, number of steps) and that its layers are reached."
    )


def _failure(
    target: str,
    difference: OutputDifference,
    from_base: OutputDifference,
    adapter: OutputDifference,
    noise: Noise,
    limits: tuple[float, float],
    recovery: Recovery | None,
) -> str | None:
    subject = "the exported folder" if target == "exported" else f"merging into the {target} weights"
    remedy = RE_EXPORT if target == "exported" else "keep the adapter beside its base"
    nothing, limit = limits
    if from_base.max_logit_difference <= nothing:
        return (
            f"{subject} loses the adapter: the merged model's outputs are those of the base, where the adapter moves "
            f"a logit by {adapter.max_logit_difference:.1e}; merge in a more exact dtype."
        )
    if not difference.max_logit_difference <= limit:
        return (
            f"{subject} changes the model: {describe_difference(difference)}, and {limit:.1e} is allowed; {remedy}, or "
            "set the callback's tolerance if that is exact enough."
        )
    if clause := find_merge_fault(difference, noise, recovery):
        return f"{subject} changes the model: {clause}; {remedy}."
    return None


def describe_difference(difference: OutputDifference) -> str:
    """The largest movement of a logit and the share of decisions that flip, in words."""
    text = f"logits move by up to {difference.max_logit_difference:.1e}"
    if difference.decisions:
        text += f", {100 * difference.flipped_share:.3g} % of {difference.decisions} decisions flip"
    return text


def _or_infinity(value: float) -> float:
    return math.inf if math.isnan(value) else value


def computing_dtypes(model: nn.Module) -> set[torch.dtype]:
    """The dtypes that adapted layers store weights in and compute in.

    Args:
        model: The adapted model; called inside autocast, its dtype counts too.

    Returns:
        At least one; int8 stands for 8-bit weights.
    """
    dtypes: set[torch.dtype] = set()
    for layer in adapted_layers(model).values():
        base: Any = layer.get_base_layer()
        weight = adapted_parameter(layer)
        bits = quantized_bits(base)
        dtypes.add(torch.int8 if bits == 8 else dequantized_dtype(weight) if bits else weight.dtype)  # noqa: PLR2004
        if (computes := compute_dtype(base)) is not None:  # of a 4-bit layer
            dtypes.add(computes)
        dtypes.add(adapter_factors(layer)[0].dtype)
        if torch.is_autocast_enabled(weight.device.type):
            dtypes.add(torch.get_autocast_dtype(weight.device.type))
    return dtypes


def default_tolerance(model: nn.Module) -> float:
    """The tolerance of the least exact dtype that adapted layers compute in.

    Args:
        model: The adapted model; called inside autocast, its dtype counts too.

    Returns:
        Relative to the largest logit.
    """
    return max(TOLERANCES.get(dtype, min(TOLERANCES.values())) for dtype in computing_dtypes(model))


def rounding_dtype(model: nn.Module) -> torch.dtype:
    """The dtype in which merged weights are rounded most, in storage or in the multiplication.

    Args:
        model: The adapted model; called inside autocast, its dtype counts too.

    Returns:
        A floating dtype; float16 for 8-bit weights.
    """
    dtypes = {torch.float16 if dtype == torch.int8 else dtype for dtype in computing_dtypes(model)}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
