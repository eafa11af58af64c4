"""Logits of two models are compared: what is not a number is never equal, and the adapter's effect counts."""

import math
from typing import Any

import bitsandbytes
import pytest
import torch

from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.artefacts.merge_gate import find_inequality
from lora_lightning.artefacts.plain_adapter import compare_logits, release_weights

NAN, INF = math.nan, math.inf


def compared(first: Any, second: Any, base: Any = 0.0) -> OutputDifference:
    one, other = (torch.tensor([values]) for values in (first, second))
    return compare_logits([one], [other], [torch.full_like(one, base)])


def test_what_is_not_a_number_is_never_equal() -> None:
    numbers, broken = [1.0, -3.0], [1.0, NAN]
    found = compared(numbers, [1.5, -2.5])
    assert (found.max_logit_difference, found.largest_logit) == (0.5, 3.0)
    for pair in ((numbers, broken), (broken, numbers), (broken, broken), ([NAN, NAN], [NAN, NAN]), (numbers, [INF, 1])):
        assert find_inequality(compared(*pair), tolerance=1.0) is not None


def test_padding_is_not_compared() -> None:
    padded = compared([2.0, -INF], [2.0, -INF])
    assert (padded.max_logit_difference, padded.largest_logit) == (0.0, 2.0)
    assert find_inequality(compared([-INF], [-INF]), 1e-4) is None


@pytest.mark.parametrize("tolerance", [1e-4, 5e-2])  # of float32, and of 8 bits
def test_a_tolerance_above_the_effect_hides_no_lost_effect(tolerance: float) -> None:
    effect = tolerance * torch.linspace(-1, 1, 1000)
    base = torch.linspace(-10, 10, 1000).flip(0)
    for kept, is_equal in ((1.0, True), (0.5, False), (0.0, False)):
        found = compare_logits([base + effect], [base + kept * effect], [base])
        assert found.max_logit_difference < tolerance * 10
        assert (find_inequality(found, tolerance) is None) is is_equal


def test_a_released_8_bit_layer_keeps_no_weight() -> None:
    layer = bitsandbytes.nn.Linear8bitLt(32, 16, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(torch.randn(16, 32), requires_grad=False, has_fp16_weights=False).to(
        "cpu"
    )
    layer.eval()(torch.randn(2, 32))
    release_weights(layer)
    kept = [getattr(owner, name, None) for owner in (layer.state, layer.weight) for name in ("CB", "SCB")]
    assert sum(tensor.numel() for tensor in [*layer.parameters(), *filter(torch.is_tensor, kept)]) == 0
