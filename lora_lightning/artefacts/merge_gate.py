"""Decides whether a merged folder is good enough to ship."""

import math
from collections.abc import Sequence

import torch

from lora_lightning.analysis.merge_verdict import (
    DEVIATIONS,
    EXACT,
    LEAST_LOSS,
    NO_OP,
    TOLERANCES,
    describe_difference,
)
from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.artefacts.results import FreshProcessCheck, MergeMeasurement
from lora_lightning.lora.merging import MergeTarget

LEAST_RECOVERY = 0.95  # of the adapter's gain; the interval's lower bound has to be above it
LOGIT_TOLERANCE = TOLERANCES[torch.float32]  # of max(1, largest |logit|), for a merge that rounds nothing
ROUNDED_TOLERANCE = TOLERANCES[torch.float16]  # between two processes that load the same rounded weights


def find_no_op(effect: OutputDifference) -> str | None:
    """Why an adapter is not worth merging.

    Args:
        effect: Of the base without adapters from the adapter model.

    Returns:
        A clause if the adapter does not move any logit; `None` if it does.
    """
    if effect.max_logit_difference > NO_OP * LOGIT_TOLERANCE * max(1.0, effect.largest_logit):
        return None
    return (
        f"the adapter changes nothing: without it no logit moves by more than {effect.max_logit_difference:.1e}; check "
        "that it was trained, and that this is its base model"
    )


def find_merge_failure(measured: MergeMeasurement, tolerance: float = LOGIT_TOLERANCE) -> str | None:
    """Why a merged folder is not good enough.

    Args:
        measured: The folder, loaded again.
        tolerance: Of logits, relative to max(1, largest |logit|), for a merge that rounds nothing: that of the dtype in
            which the adapter model computes. On an 8-bit base it rounds its activations to 8 bits.

    Returns:
        A clause; `None` if it passes. Without a gain clearly above 0, the adapter's effect on the logits decides.
    """
    difference, recovery = measured.difference, measured.recovery
    if not difference.max_logit_difference < math.inf:
        return "its logits are not finite"
    if rounds_nothing(measured.target, measured.dtype) and (clause := find_inequality(difference, tolerance)):
        return clause
    if recovery is None or not recovery.has_gain:
        return _find_lost_effect(measured)
    if not recovery.ratio.low > LEAST_RECOVERY:
        return f"{recovery}, and its lower bound must be above {LEAST_RECOVERY}"
    return None


def find_inequality(difference: OutputDifference, tolerance: float) -> str | None:
    """Why two models that must be equal are not.

    Args:
        difference: Of the second model from the first, with the adapter's effect on the logits.
        tolerance: Of logits, relative to max(1, largest |logit|).

    Returns:
        A clause; `None` if they are equal up to rounding: no logit moves by more than the tolerance, and the adapter's
        effect on the logits is there, which a tolerance above that effect would not show.
    """
    allowed = tolerance * max(1.0, difference.largest_logit)
    if not difference.max_logit_difference <= allowed:
        return f"{describe_difference(difference)}, and {allowed:.1e} is allowed"
    if abs(difference.lost_share) > _allowed_loss(difference, tolerance):
        kept = 100 * (1 - difference.lost_share)
        return f"{kept:.4g} % of the adapter's effect on the logits is there"
    return None


def _find_lost_effect(measured: MergeMeasurement) -> str | None:
    """The limit of a merge that rounds if no gain says what rounding costs."""
    difference, effect = measured.difference, measured.adapter_effect.rms_logit_difference
    if not abs(difference.lost_share) <= 1 - LEAST_RECOVERY:
        kept = 100 * (1 - difference.lost_share)
        return (
            f"{kept:.4g} % of the adapter's effect on the logits is there, and without a gain that can be judged "
            f"{100 * LEAST_RECOVERY:.3g} to {100 * (2 - LEAST_RECOVERY):.3g} % must be"
        )
    if not difference.rms_logit_difference < effect:
        return (
            f"logits move by {difference.rms_logit_difference:.1e} (root mean square), and the adapter itself moves "
            f"them by {effect:.1e} only"
        )
    return None


def _allowed_loss(difference: OutputDifference, tolerance: float) -> float:
    """The share of the adapter's effect that rounding may take: more by chance, the smaller the effect is.

    An effect that is smaller than the tolerance of logits would hide any fault otherwise.
    """
    noise = tolerance / 10 * max(1.0, difference.largest_logit)  # root mean square, where the tolerance is the maximum
    return max(LEAST_LOSS, DEVIATIONS * noise / difference.effect_norm)


def find_fresh_process_failure(found: FreshProcessCheck, tolerance: float) -> str | None:
    """Why a folder is not good enough that a fresh process loaded.

    Args:
        found: What the process computed.
        tolerance: Of logits, relative to max(1, largest |logit|).

    Returns:
        A clause; `None` if it passes.
    """
    allowed = tolerance * max(1.0, found.largest_logit)
    for value, where in (
        (found.max_logit_difference, "in a fresh process with transformers alone"),
        (found.max_difference_after_saving_again, "after transformers saved and loaded it once more"),
    ):
        if value is not None and not value <= allowed:
            return f"logits move by up to {value:.1e} {where}, and {allowed:.1e} is allowed"
    return None


def rounds_nothing(target: MergeTarget, dtype: str) -> bool:
    """Whether a merge must give the adapter model's logits: into the weights it was trained on, in float32."""
    return target in EXACT and dtype == "float32"


def recommend_target(measurements: Sequence[MergeMeasurement]) -> MergeTarget:
    """The target whose merged model is closest to the adapter model.

    Args:
        measurements: At least one.

    Returns:
        The one with the least mean difference of logits in float32 among those that passed; among all if none did.
    """
    in_float32 = [found for found in measurements if found.dtype == "float32"] or list(measurements)
    passed = [found for found in in_float32 if found.failure is None] or in_float32
    return min(passed, key=lambda found: _or_infinity(found.difference.mean_logit_difference)).target


def _or_infinity(value: float) -> float:
    return math.inf if math.isnan(value) else value
