"""Decides whether a merged folder is good enough to ship."""

import math
from collections.abc import Sequence

import torch

from lora_lightning.analysis.merge_verdict import EXACT, NO_OP, TOLERANCES, describe_difference
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
    if effect.max_logit_difference > NO_OP * allowed_logit_difference(effect):
        return None
    return (
        f"the adapter changes nothing: without it no logit moves by more than {effect.max_logit_difference:.1e}; check "
        "that it was trained, and that this is its base model"
    )


def find_merge_failure(measured: MergeMeasurement) -> str | None:
    """Why a merged folder is not good enough.

    Args:
        measured: The folder, loaded again.

    Returns:
        A clause; `None` if it passes. A gain that is not judged does not fail.
    """
    difference, recovery = measured.difference, measured.recovery
    if not difference.max_logit_difference < math.inf:
        return "its logits are not finite"
    allowed = allowed_logit_difference(difference)
    if rounds_nothing(measured.target, measured.dtype) and difference.max_logit_difference > allowed:
        return f"{describe_difference(difference)}, and {allowed:.1e} is allowed in float32"
    if recovery is not None and recovery.judged and not recovery.ratio.low > LEAST_RECOVERY:
        return f"{recovery}, and its lower bound must be above {LEAST_RECOVERY}"
    return None


def find_fresh_process_failure(found: FreshProcessCheck, *, is_exact: bool) -> str | None:
    """Why a folder is not good enough that a fresh process loaded.

    Args:
        found: What the process computed.
        is_exact: Whether it was compared with the adapter model in float32, which must be exact. If not, it was
            compared with the same folder in this process, and two processes may round 16, 8 or 4 bits in another way.

    Returns:
        A clause; `None` if it passes.
    """
    allowed = (LOGIT_TOLERANCE if is_exact else ROUNDED_TOLERANCE) * max(1.0, found.largest_logit)
    for value, where in (
        (found.max_logit_difference, "in a fresh process with transformers alone"),
        (found.max_difference_after_saving_again, "after transformers saved and loaded it once more"),
    ):
        if not value <= allowed:
            return f"logits move by up to {value:.1e} {where}, and {allowed:.1e} is allowed"
    return None


def allowed_logit_difference(difference: OutputDifference) -> float:
    """By how much a logit may move in float32: the tolerance times the largest logit, or times 1 if that is larger."""
    return LOGIT_TOLERANCE * max(1.0, difference.largest_logit)


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
