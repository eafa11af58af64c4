"""The list of modules to skip as options of `fit`, and the judgement of planted runs."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lora_lightning.diagnosis.sensitivity import SkipChoice
from lora_lightning.diagnosis.skip_proof import judge_skips, with_skip_modules
from lora_lightning.diagnosis.specification import SkipProof
from lora_lightning.statistics.ratio import bought_back_share
from lora_lightning.statistics.study_results import ConfigurationResults, Metric
from tests.diagnosis import planted

CHOICE = SkipChoice(("a.query", "b.value"), 1200, 10_000, (), ())


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


def judge(chosen: float, *random: float) -> Any:
    lists = [runs(f"random list {number}", each) for number, each in enumerate(random or (0.85, 0.85), start=1)]
    lists = [runs("sensitive modules", chosen), *lists]
    choice = replace(CHOICE, random_bytes=(1200, *[1140] * (len(lists) - 2)))
    proof = SkipProof(seeds=planted.SEEDS)
    return judge_skips(runs("full", 0.92), runs("quantized", 0.84), lists, choice, proof, Metric("accuracy"))


def test_seeds_without_all_runs_are_named() -> None:
    assert "It rests on" not in judge(0.91).sentence
    proof = SkipProof(seeds=(*planted.SEEDS, 77))
    lists = [runs("sensitive modules", 0.91), runs("random list 1", 0.85)]
    choice = replace(CHOICE, random_bytes=(1200,))
    found = judge_skips(runs("full", 0.92), runs("quantized", 0.84), lists, choice, proof, Metric("accuracy"))
    count = len(planted.SEEDS)
    named = ", ".join(map(str, planted.SEEDS))
    assert found.sentence.endswith(
        f"It rests on {count} of {count + 1} seeds ({named}): the others lack a finished run."
    )


def test_runs_of_seeds_beyond_the_proof_do_not_count() -> None:
    full, quantized = runs("full", 0.92), runs("quantized", 0.84)
    lists = [runs("sensitive modules", 0.91), runs("random list 1", 0.85)]
    choice, proof = replace(CHOICE, random_bytes=(1200,)), SkipProof(seeds=planted.SEEDS[:3])
    found = judge_skips(full, quantized, lists, choice, proof, Metric("accuracy"))
    assert found.random[0].difference.seeds == 3
    assert "It rests on" not in found.sentence


def test_all_numbers_are_of_the_same_seeds() -> None:
    """The quantized precision has a seed of its own, and one list lacks a seed in which the others are far off."""
    full, quantized, chosen = (runs(name, each) for name, each in (("full", 0.92), ("quantized", 0.84), ("own", 0.91)))
    other, short = runs("random list 1", 0.85), runs("random list 2", 0.85)
    quantized = replace(quantized, values={**quantized.values, 10: 0.0})
    last = planted.SEEDS[-1]
    lists = [replace(each, values={**each.values, last: far}) for each, far in ((chosen, 0.1), (other, 0.9))]
    lists += [replace(short, values={seed: value for seed, value in short.values.items() if seed != last})]
    choice = replace(CHOICE, random_bytes=(1200, 1200))
    proof = SkipProof(seeds=planted.SEEDS)
    found = judge_skips(full, quantized, lists, choice, proof, Metric("accuracy"))
    assert [round(mean) for mean in found.means.values()] == [92, 84, 91, 85, 85]
    assert [each.difference.seeds for each in found.random] == [len(planted.SEEDS) - 1] * 2
    assert found.proven
    assert "It rests on 4 of 5 seeds (0, 1, 2, 3)" in found.sentence


def test_a_list_that_buys_back_most_of_the_loss_is_proven() -> None:
    found = judge(0.91)
    assert found.proven
    assert found.bought_back.value == pytest.approx(0.07 / 0.08, abs=0.05)
    assert found.bought_back.low > 0.5
    assert found.over_random.interval.value == pytest.approx(0.06, abs=0.005)
    assert found.bytes_share == 0.12
    assert found.means["random list 2"] == pytest.approx(85, abs=0.3)
    assert "takes 12 % more memory" in found.sentence
    assert "It is number 1 of 3 lists, and better than 2 random ones" in found.sentence
    assert "which take up to 5.0% fewer bytes" in found.sentence


@pytest.mark.parametrize(
    ("chosen", "random"), [(0.86, 0.84), (0.91, 0.91), (0.84, 0.84)], ids=["little", "no better", "nothing"]
)
def test_less_than_half_or_no_more_than_random_lists_is_not_proven(chosen: float, random: float) -> None:
    assert not judge(chosen, random).proven


def test_the_best_random_list_counts_and_not_their_mean_alone() -> None:
    """The mean of the random lists is far below the list, and one of them above it."""
    found = judge(0.90, 0.85, 0.84, 0.91)
    assert found.p_value < 0.05
    assert (found.rank, found.proven) == (2, False)
    assert "number 2 of 4 lists, and not proven better than 3 random ones" in found.sentence
    best = found.random[0]
    assert (best.name, best.mean) == ("random list 3", pytest.approx(91, abs=0.3))
    assert best.difference.interval.value == pytest.approx(-0.01, abs=0.003)
    assert [each.name for each in found.random] == ["random list 3", "random list 1", "random list 2"]
    assert best.p_value > 0.5
    assert found.random[2].p_value < 0.05


def test_without_another_list_of_these_bytes_nothing_is_proven() -> None:
    full, quantized, proof = runs("full", 0.92), runs("quantized", 0.84), SkipProof(seeds=planted.SEEDS)
    found = judge_skips(full, quantized, [runs("sensitive modules", 0.91)], CHOICE, proof, Metric("accuracy"))
    assert (found.proven, found.over_random, found.random) == (False, None, ())
    assert "no other list of its bytes" in found.sentence


def test_one_seed_is_no_test_of_lists() -> None:
    own = [replace(runs(name, each), values={0: each}) for name, each in (("full", 0.92), ("quantized", 0.84))]
    lists = [replace(runs(name, 0.9), values={0: each}) for name, each in (("chosen", 0.91), ("random list 1", 0.85))]
    choice = replace(CHOICE, random_bytes=(1200,))
    found = judge_skips(*own, lists, choice, SkipProof(seeds=(0,)), Metric("accuracy"))
    assert not found.proven
    assert math.isnan(found.p_value)
    assert [math.isnan(each.p_value) for each in found.random] == [True]
    assert "(their mean: not tested; the best one" in found.sentence


def test_the_share_counts_chance_of_seeds_and_of_examples() -> None:
    def of(values: list[float], outcomes: Any = None) -> ConfigurationResults:
        return ConfigurationResults("x", {}, dict(enumerate(values)), dict(enumerate(outcomes or [])))

    found = bought_back_share(of([1.0, 2.0, 1.5]), of([0.0, 0.0, 0.0]), of([0.5, 1.5, 1.0]))
    assert found.value == pytest.approx(3 / 4.5)
    assert found.low < 0.5  # of three seeds
    assert found.high > 0.8
    random = np.random.default_rng(0)
    table = [(random.random(300) < share).astype(float) for share in (0.9, 0.6)]
    full, quantized = table
    chosen = np.where(random.random(300) < 0.5, full, quantized)
    every = [[each + 1e-7 * seed for seed in range(3)] for each in (full, quantized, chosen)]
    found = bought_back_share(*(of([float(row.mean()) for row in rows], rows) for rows in every))
    assert found.high - found.low > 0.2  # seeds agree, and examples do not
    assert found.contains(0.5)
    assert math.isnan(bought_back_share(of([1.0]), of([]), of([0.5])).value)


def test_failed_runs_of_the_list_are_named_in_place_of_a_p_value() -> None:
    lists = [replace(runs("sensitive modules", 0.91), failed_seeds=(9,)), runs("random list 1", 0.85)]
    choice, proof = replace(CHOICE, random_bytes=(1200,)), SkipProof(seeds=planted.SEEDS)
    found = judge_skips(runs("full", 0.92), runs("quantized", 0.84), lists, choice, proof, Metric("accuracy"))
    assert not found.proven
    assert math.isnan(found.p_value)
    assert math.isnan(found.random[0].p_value)
    assert "not tested, since 1 of 6 runs of sensitive modules failed or have no result" in found.sentence
