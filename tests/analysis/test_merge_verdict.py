"""Which differences are rounding, which are faults, and in which order they are named."""

import math
from dataclasses import replace

import pytest
import torch

from lora_lightning.analysis.merge_verdict import Noise, find_merge_fault, merge_verdict, noise_of
from lora_lightning.analysis.merged_weights import compare_merged_weight, first_other_weight
from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.statistics import Interval, Recovery

ROUNDED = OutputDifference(
    max_logit_difference=0.01,
    mean_logit_difference=0.002,
    rms_logit_difference=0.003,
    kl_divergence=1e-6,
    flipped_share=0.01,
    largest_logit=10.0,
    decisions=200,
    firm_decisions=180,
    firm_flips=0,
    lost_share=0.001,
)
NOISE = Noise(logit=0.02, rms=0.003, kl_divergence=1e-6, lost_share=0.001, change=1e-4)
ADAPTER = replace(ROUNDED, max_logit_difference=5.0, rms_logit_difference=1.0, kl_divergence=0.5)


def recovery(ratio: float, half: float, judged: bool = True) -> Recovery:
    gain = Interval(1.0, 0.8, 1.2) if judged else Interval(0.1, -0.2, 0.4)
    change = Interval(ratio - 1, ratio - 1 - half, ratio - 1 + half)
    return Recovery(Interval(ratio, ratio - half, ratio + half), gain, change, judged)


@pytest.mark.parametrize(
    ("changes", "found", "clause"),
    [
        ({}, None, None),
        ({}, recovery(0.9999, 0.001), None),
        ({}, recovery(0.9, 0.2), None),  # the interval holds 1
        ({}, recovery(0.9999, 0.00001), None),  # surely less, but no more than rounding takes
        ({}, recovery(0.9, 0.01), "the adapter's gain is not what it was: recovery ratio 0.9 "),
        ({"firm_flips": 3}, None, "3 of 180 decisions flip that rounding cannot"),
        ({"lost_share": 0.01}, None, "99 % of the adapter's effect on the logits is there"),
        ({"lost_share": 0.01, "effect_norm": 0.5}, None, None),  # so few logits may lose as much by chance
        ({"lost_share": -1.0}, None, "200 % of the adapter's effect on the logits is there"),
        ({"rms_logit_difference": 0.03}, None, "the logits move 10 times as much as by rounding"),
        ({"kl_divergence": 1e-4}, None, "the probabilities diverge 1e+02 times as much as by rounding"),
        ({"kl_divergence": 1e-4}, recovery(0.5, 0.1, judged=False), "the probabilities diverge 1e+02 times as much"),
        ({"kl_divergence": 1e-4}, recovery(1.0, 0.1), None),  # judged by what matters
        ({"max_logit_difference": math.nan}, None, "logits move by up to nan"),
    ],
)
def test_what_exceeds_rounding_is_named(changes: dict[str, float], found: Recovery | None, clause: str | None) -> None:
    said = find_merge_fault(replace(ROUNDED, **changes), NOISE, found)
    if clause is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(clause)


def test_noise_is_the_most_that_intact_merges_do_and_never_less_than_a_unit() -> None:
    found = noise_of([ROUNDED, replace(ROUNDED, lost_share=-0.004)], [1e-5, -2e-5, math.nan], torch.float32)
    assert found == Noise(logit=0.01, rms=0.003, kl_divergence=1e-6, lost_share=0.004, change=2e-5)
    assert noise_of([ROUNDED], [], torch.bfloat16).logit == pytest.approx(10 * 2**-7)


def judge(found: OutputDifference, weight_fault: str | None = None, ceiling: float | None = None) -> str | None:
    from_base = {"exported": ADAPTER, "base": ADAPTER}
    merges = {"exported": found, "base": ROUNDED}
    return merge_verdict(merges, from_base, ADAPTER, NOISE, 0.05, ceiling, {}, weight_fault).failure


def test_the_exported_folder_is_judged_first() -> None:
    assert judge(ROUNDED) is None
    assert str(judge(replace(ROUNDED, firm_flips=1))).startswith("the exported folder changes the model: 1 of 180 ")
    assert str(judge(ROUNDED, "layer.0 holds 200 % of its update")).startswith(
        "the exported folder is not what the best checkpoint holds: layer.0 holds 200 % of its update; do not ship it"
    )


def test_a_ceiling_holds_whatever_rounding_does_unless_it_is_lifted() -> None:
    large = replace(ROUNDED, max_logit_difference=0.6)
    assert "and 5.0e-01 is allowed" in str(judge(large))
    assert judge(large, ceiling=math.inf) is None
    assert "and 1.0e-03 is allowed" in str(judge(ROUNDED, ceiling=1e-4))


def weights(dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A merged weight with `scale` times the update, the base, and W + dW."""
    random = torch.Generator().manual_seed(0)
    base = torch.randn(64, 64, generator=random).to(dtype).float()
    update = 0.1 * torch.randn(64, 4, generator=random) @ torch.randn(4, 64, generator=random)
    return (base + scale * update).to(dtype), base, base + update


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 0.9, 0.99, 1.01, 2.0, -1.0])
def test_a_wrong_scaling_is_measured_in_every_dtype(scale: float, dtype: torch.dtype) -> None:
    assert compare_merged_weight(*weights(dtype)).fault is None
    found = compare_merged_weight(*weights(dtype, scale))
    assert found.recovered == pytest.approx(scale, abs=3e-3)
    assert found.fault == f"holds {100 * found.recovered:.4g} % of its update"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_noise_and_nan_are_found_in_every_dtype(dtype: torch.dtype) -> None:
    found, base, expected = weights(dtype)
    noisy = found.float() + 0.03 * base.std() * torch.randn(base.shape, generator=torch.Generator().manual_seed(1))
    assert str(compare_merged_weight(noisy.to(dtype), base, expected).fault).startswith("is off by ")
    found[0, 0] = torch.nan
    assert compare_merged_weight(found, base, expected).fault == "is not finite"
    assert compare_merged_weight(base.to(dtype), base, base).fault is None  # no update at all


def test_other_weights_are_compared_exactly() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    assert first_other_weight({"a": one, "b": two}, {"a": one}) is None
    assert first_other_weight({"a": two}, {"a": one}) == "a differs from the checkpoint's"
    assert first_other_weight({}, {"a": one}) == "a is missing"
