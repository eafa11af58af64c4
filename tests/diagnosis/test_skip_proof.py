"""The list of modules to skip as options of `fit`, and the judgement of planted runs."""

from typing import Any

import numpy as np
import pytest

from lora_lightning.diagnosis.sensitivity import SkipChoice
from lora_lightning.diagnosis.skip_proof import bought_back_share, judge_skips, with_skip_modules
from lora_lightning.diagnosis.specification import SkipProof
from lora_lightning.statistics.study_results import ConfigurationResults, Metric
from tests.diagnosis import planted

CHOICE = SkipChoice(("a.query", "b.value"), 1200, 10_000, (("c",), ("d",)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model.quantization": {"bits": 4}}, {"model.quantization": {"bits": 4, "skip_modules": ["q", "v"]}}),
        (
            {"model.init_args.quantization": {"bits": 4, "skip_modules": ["dense"]}, "x": 1},
            {"model.init_args.quantization": {"bits": 4, "skip_modules": ["q", "v"]}, "x": 1},
        ),
        (
            {"model.quantization.bits": 4},
            {"model.quantization.bits": 4, "model.quantization.skip_modules": ["q", "v"]},
        ),
        (
            {"model.quantization.bits": 4, "model.init_args.quantization.skip_modules": ["dense"]},
            {"model.quantization.bits": 4, "model.init_args.quantization.skip_modules": ["q", "v"]},
        ),
    ],
)
def test_the_list_replaces_what_is_skipped(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert with_skip_modules(options, ["q", "v"]) == expected


def runs(name: str, accuracy: float, noise: float = 0.002) -> ConfigurationResults:
    random = np.random.default_rng(len(name) + int(1000 * accuracy))
    return ConfigurationResults(name, {}, {seed: accuracy + noise * random.normal() for seed in planted.SEEDS})


def judge(chosen: float, random: float = 0.85) -> Any:
    lists = [runs("sensitive modules", chosen), runs("random list 1", random), runs("random list 2", random)]
    proof = SkipProof(seeds=planted.SEEDS)
    return judge_skips(runs("full", 0.92), runs("quantized", 0.84), lists, CHOICE, proof, Metric("accuracy"))


def test_a_list_that_buys_back_most_of_the_loss_is_proven() -> None:
    found = judge(0.91)
    assert found.proven
    assert found.bought_back.value == pytest.approx(0.07 / 0.08, abs=0.05)
    assert found.bought_back.low > 0.5
    assert found.over_random.interval.value == pytest.approx(0.06, abs=0.005)
    assert found.bytes_share == 0.12
    assert found.means["random list 2"] == pytest.approx(85, abs=0.3)
    assert "takes 12 % more memory" in found.sentence


@pytest.mark.parametrize(
    ("chosen", "random"), [(0.86, 0.84), (0.91, 0.91), (0.84, 0.84)], ids=["little", "no better", "nothing"]
)
def test_less_than_half_or_no_more_than_random_lists_is_not_proven(chosen: float, random: float) -> None:
    assert not judge(chosen, random).proven


def test_the_share_is_a_ratio_of_means_with_its_jackknife() -> None:
    def of(values: list[float]) -> ConfigurationResults:
        return ConfigurationResults("x", {}, dict(enumerate(values)))

    found = bought_back_share(of([1.0, 2.0, 4.0]), of([0.0, 0.0, 0.0]), of([0.5, 1.5, 3.0]))
    assert found.value == pytest.approx(5 / 7)
    without = np.array([4.5 / 6, 3.5 / 5, 2 / 3])
    half = 4.302652729911275 * np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    assert found.high - found.value == pytest.approx(half)
