"""Whether a merge is faithful, and what to merge into, in one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.compat.bitsandbytes import compute_dtype, dequantized_dtype
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.quantized import quantized_bits

# Largest difference of two logits, relative to the largest logit, that rounding explains in a deep model: some hundred
# units in the last place of float32, some ten of the 16-bit dtypes. int8 stands for 8-bit bases, whose inputs are
# rounded to 8 bits too.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.int8: 5e-2}
NO_OP = 0.01  # share of the tolerance below which two models are the same
EXACT = ("base", "dequantized")  # merges that must change nothing


@dataclass(frozen=True)
class Verdict:
    """What the comparison means.

    Attributes:
        recommended: The target that changes least.
        sentence: What to do, with the reason.
        failure: What is wrong and how to mend it; `None` where merging is faithful.
    """

    recommended: str
    sentence: str
    failure: str | None


def judge(
    model: nn.Module,
    differences: Mapping[str, OutputDifference],
    from_base: Mapping[str, OutputDifference],
    adapter: OutputDifference,
    tolerance: float | None = None,
) -> Verdict:
    """Decides.

    Args:
        model: The adapted model.
        differences: Of each merged model from the adapted one.
        from_base: Of each merged model from the base without adapters.
        adapter: Of the base from the adapted model.
        tolerance: Relative to the largest logit; `None` chooses by dtype.

    Returns:
        The verdict.
    """
    limit = (default_tolerance(model) if tolerance is None else tolerance) * max(1.0, adapter.largest_logit)
    # NaN is never the smallest.
    recommended = min(differences, key=lambda target: _or_infinity(differences[target].mean_logit_difference))
    best, *others = sorted(differences, key=lambda target: target != recommended)
    sentence = f"merge into the {best} weights: {_effect(differences[best])}"
    if others:
        sentence += " (" + "; ".join(f"{other}: {_effect(differences[other])}" for other in others) + ")"
    exact = next(target for target in EXACT if target in differences)
    failure = _failure(exact, differences[exact], from_base[exact], adapter, limit)
    return Verdict(recommended, f"{sentence}; the adapter itself: {_effect(adapter)}.", failure)


def _failure(
    target: str, difference: OutputDifference, from_base: OutputDifference, adapter: OutputDifference, limit: float
) -> str | None:
    if adapter.max_logit_difference <= NO_OP * limit:
        return (
            f"the adapter changes nothing: without it no logit moves by more than {adapter.max_logit_difference:.1e}; "
            "check that it was trained (learning rate, number of steps) and that its layers are reached."
        )
    if from_base.max_logit_difference <= NO_OP * limit:
        return (
            f"merging into the {target} weights loses the adapter: the merged model says what the base says, where the "
            f"adapter moves a logit by {adapter.max_logit_difference:.1e}; merge in a more exact dtype."
        )
    if not difference.max_logit_difference <= limit:
        return (
            f"merging into the {target} weights changes the model: {_effect(difference)}, and {limit:.1e} is allowed; "
            "keep the adapter beside its base, or set the callback's tolerance if that is exact enough."
        )
    return None


def _effect(difference: OutputDifference) -> str:
    text = f"logits move by up to {difference.max_logit_difference:.1e}"
    if difference.decisions:
        text += f", {100 * difference.flipped_share:.3g} % of {difference.decisions} decisions flip"
    return text


def _or_infinity(value: float) -> float:
    return math.inf if math.isnan(value) else value


def default_tolerance(model: nn.Module) -> float:
    """The tolerance of the least exact dtype that adapted layers compute in.

    Args:
        model: The adapted model; called inside autocast, its dtype counts too.

    Returns:
        Relative to the largest logit.
    """
    dtypes: set[torch.dtype] = set()
    for layer in adapted_layers(model).values():
        base: Any = layer.get_base_layer()
        weight = base.weight
        bits = quantized_bits(base)
        dtypes.add(torch.int8 if bits == 8 else dequantized_dtype(weight) if bits else weight.dtype)  # noqa: PLR2004
        if (computes := compute_dtype(base)) is not None:  # of a 4-bit layer
            dtypes.add(computes)
        dtypes.add(adapter_factors(layer)[0].dtype)
        if torch.is_autocast_enabled(weight.device.type):
            dtypes.add(torch.get_autocast_dtype(weight.device.type))
    return max(TOLERANCES.get(dtype, min(TOLERANCES.values())) for dtype in dtypes)
