"""Adapters as planted points: kinds of pairs, both tests, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_lightning.analysis.similarity import delta_cosine, relative_distance
from lora_lightning.diagnosis.adapter_similarity import Adapter, PairKind, compare_adapters
from lora_lightning.errors import DataError
from lora_lightning.lora.delta import AdapterDelta
from tests.diagnosis import planted


def test_pairs_are_sorted_by_what_differs_and_averaged() -> None:
    own = planted.adapters(shared=0.0)
    found = compare_adapters(own, planted.SEEDS, planted.OTHER_SEEDS)
    module, at = planted.MODULES[2], found.modules[2]
    assert (at.module, at.layer, at.kind) == ("encoder.layer.1.query", 1, "query")
    full = {each.seed: each.updates[module] for each in own if not each.is_quantized}
    quantized = {each.seed: each.updates[module] for each in own if each.is_quantized}
    same = [(full[seed], quantized[seed]) for seed in planted.SEEDS]
    assert at.cosine[PairKind.PRECISION] == pytest.approx(np.mean([delta_cosine(*pair) for pair in same]), rel=1e-6)
    assert at.distance[PairKind.PRECISION] == pytest.approx(
        np.mean([relative_distance(*pair) for pair in same]), rel=1e-6
    )
    both = [(full[i], quantized[j]) for i in full for j in quantized if i != j]
    assert at.distance[PairKind.BOTH] == pytest.approx(np.mean([relative_distance(*pair) for pair in both]), rel=1e-6)
    assert len(found.adapters) == len(found.distances) == 15
    norms = [float(update.dense().norm()) for update in full.values()]
    assert at.norms[0] == pytest.approx(np.mean(norms), rel=1e-5)
    spectra = np.mean([np.linalg.svd(update.dense().numpy(), compute_uv=False)[:4] for update in full.values()], axis=0)
    assert at.spectra[0] == pytest.approx(spectra, rel=1e-4)
    assert at.random_output_overlap == pytest.approx(4 / 24)
    assert at.output_overlap[PairKind.SEED] == pytest.approx(4 / 24, abs=0.1)
    assert at.output_overlap[PairKind.PRECISION] > 0.8
    assert 0 < at.largest_angle[PairKind.PRECISION] < at.largest_angle[PairKind.SEED] <= 90


def test_precisions_that_move_adapters_a_little_are_not_told_apart() -> None:
    found = planted.similarity(by_precision=0.3)
    assert found.permutation is not None
    assert found.permutation.splits == 126
    assert found.permutation.p_value > 0.05
    assert found.against_seeds.high < 0
    assert found.by_kind[PairKind.PRECISION] < found.by_kind[PairKind.SEED]
    assert (found.zero_modules, found.scalings) == ((), {})


def test_a_common_direction_of_one_precision_is_told_apart() -> None:
    found = planted.similarity(by_precision=0.0, moved=4.0)
    assert found.permutation is not None
    assert found.permutation.p_value == pytest.approx(1 / 126)
    assert found.against_seeds.low > 0


def test_the_label_test_needs_seeds_of_its_own() -> None:
    own = [each for each in planted.adapters() if each.seed in planted.SEEDS]
    assert compare_adapters(own, planted.SEEDS, ()).permutation is None
    two = [each for each in own if each.seed < 2]
    assert math.isnan(compare_adapters(two, (0, 1), ()).against_seeds.value)


def test_both_tests_leave_pairs_out_that_start_with_the_same_a() -> None:
    """The updates of one seed are equal or unrelated, which no verdict may notice."""
    own = planted.adapters()
    full = {each.seed: each for each in own if not each.is_quantized}
    unrelated = planted.adapters(by_precision=50.0)
    equal = [
        replace(each, updates=full[each.seed].updates) if each.is_quantized and each.seed in full else each
        for each in own
    ]
    far = [
        other if each.is_quantized and each.seed in full else each for each, other in zip(own, unrelated, strict=True)
    ]
    near, apart = (compare_adapters(each, planted.SEEDS, planted.OTHER_SEEDS) for each in (equal, far))
    assert near.by_kind[PairKind.PRECISION] == pytest.approx(0, abs=1e-3)
    assert apart.by_kind[PairKind.PRECISION] > 1
    assert near.against_seeds == apart.against_seeds
    assert near.permutation == apart.permutation
    wanted = []
    for module in planted.MODULES:
        dense = [
            each.updates[module].dense().double().numpy() for each in own if each.is_quantized is (each.seed >= 10)
        ]
        squared = [[((one - two) ** 2).sum() for one in dense] for two in dense]
        both = [squared[place][5 + place] for place in range(5)]  # seeds 0 to 4 in float32, 10 to 14 in NF4
        within = [squared[first + i][first + j] for first in (0, 5) for i in range(5) for j in range(i)]
        wanted.append((np.mean(both) - 2 * np.mean(within)) / np.mean([(each**2).sum() for each in dense]))
    assert near.against_seeds.value == pytest.approx(np.mean(wanted), rel=1e-5)


def test_a_shared_start_makes_adapters_alike_that_the_precision_does_not() -> None:
    """One step from A, dW = G A^T A: the gradient G is drawn anew for each run around a common one."""
    generator = torch.Generator().manual_seed(0)
    common, start = torch.randn(24, 40, generator=generator), {}
    own = []
    for is_quantized, seeds in ((False, (0, 1, 2)), (True, (0, 1, 2, 10, 11, 12))):
        for seed in seeds:
            a = start.setdefault(seed, torch.randn(4, 40, generator=generator))
            gradient = common + 0.3 * torch.randn(24, 40, generator=generator)
            updates = {"query": AdapterDelta("query", a, gradient @ a.T, 1.0)}
            own.append(Adapter(f"{is_quantized} {seed}", is_quantized, seed, updates))
    found = compare_adapters(own, (0, 1, 2), (10, 11, 12))
    assert found.start.same_seed == pytest.approx(1)
    assert abs(found.start.other_seed) < 0.3
    assert found.by_kind[PairKind.PRECISION] < 0.6
    assert found.by_kind[PairKind.BOTH] > 1.2
    assert found.by_kind[PairKind.SEED] == pytest.approx(found.by_kind[PairKind.BOTH], abs=0.1)


def test_factors_alone_mean_nothing() -> None:
    demo = planted.similarity().demo
    assert demo.update == pytest.approx(1, rel=1e-6)
    assert abs(demo.a) < 0.9
    assert abs(demo.b) < 0.9


def test_a_zero_update_has_no_direction_and_is_named() -> None:
    own = planted.adapters()
    zero = replace(own[0].updates["encoder.layer.0.query"], B=torch.zeros(24, 4))
    own[0] = replace(own[0], updates={**own[0].updates, "encoder.layer.0.query": zero})
    found = compare_adapters(own, planted.SEEDS, planted.OTHER_SEEDS)
    assert found.zero_modules == ("float32, r = 8, seed 0: encoder.layer.0.query",)
    assert all(math.isfinite(number) for row in found.distances for number in row)


def test_other_modules_are_refused() -> None:
    updates = {"query": AdapterDelta("query", torch.ones(1, 3), torch.ones(2, 1), 1.0)}
    first, second = Adapter("a", False, 0, updates), Adapter("b", True, 0, {"value": updates["query"]})
    with pytest.raises(DataError, match="'b' and 'a' adapt different modules, such as query"):
        compare_adapters([first, second], (0,), ())
