"""Pooling, cosine and debiased linear CKA against NumPy in float64, their invariances, and where there is none."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_lightning.analysis.representations import Pooling, linear_cka, pool_tokens, row_cosines


def reference_hsic(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """Song et al. 2012, equation 5, as it is written there; the diagonals are 0."""
    n, ones, product = len(k), np.ones(len(k)), k @ m
    everything = ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return float((np.trace(product) + everything - 2 / (n - 2) * ones @ product @ ones) / (n * (n - 3)))


def reference_cka(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    grams = [side @ side.T for side in (x - x.mean(axis=0), y - y.mean(axis=0))]
    k, m = (gram - np.diag(np.diag(gram)) for gram in grams)
    return reference_hsic(k, m) / math.sqrt(reference_hsic(k, k) * reference_hsic(m, m))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), examples=st.integers(5, 20), features=st.tuples(st.integers(1, 30), st.integers(1, 30))
)
def test_cka_equals_numpy(seed: int, examples: int, features: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.normal(3, 2, (examples, size)) for size in features)
    value = float(linear_cka(torch.from_numpy(x), torch.from_numpy(y)))
    assert value == pytest.approx(reference_cka(x, y), rel=1e-6, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_cka_sees_neither_rotation_nor_shift_nor_scale(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(12, 7)), random.normal(size=(12, 7))
    rotation = np.linalg.qr(random.normal(size=(7, 7)))[0]
    moved = 0.3 * (y @ rotation) + random.normal(size=7)
    before, after, own = (
        float(linear_cka(torch.from_numpy(x), torch.from_numpy(side))) for side in (y, moved, x @ rotation)
    )
    assert after == pytest.approx(before, rel=1e-9)
    assert own == pytest.approx(1, rel=1e-9)
    assert before < 0.99


@pytest.mark.parametrize(("examples", "features"), [(64, 384), (32, 576), (64, 1024)])
def test_the_cka_of_unrelated_states_is_around_zero(examples: int, features: int) -> None:
    """The biased one is 0.85 to 0.95 here."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(20):
        x, y = (torch.from_numpy(random.normal(size=(examples, features))) for _ in range(2))
        found.append(float(linear_cka(x, y)))
    assert max(map(abs, found)) < 0.15
    assert min(found) < 0 < max(found)
    shared = torch.from_numpy(random.normal(size=(examples, features)))
    x, y = (shared + 0.3 * torch.from_numpy(random.normal(size=shared.shape)) for _ in range(2))
    assert float(linear_cka(x, y)) > 0.8


def test_cosines_equal_numpy() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9, 5)), random.normal(size=(9, 5))
    expected = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(x, y, strict=True)]
    assert row_cosines(torch.from_numpy(x), torch.from_numpy(y)).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_same_states_are_exactly_alike() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert row_cosines(x, x).tolist() == pytest.approx([1] * 6, abs=1e-15)
    assert row_cosines(x, -3 * x).tolist() == pytest.approx([-1] * 6, abs=1e-15)
    assert float(linear_cka(x, x)) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_cka_of_what_does_not_vary_is_not_defined(value: float) -> None:
    constant, varied = torch.full((5, 3), value), torch.randn(5, 3)
    one = constant.clone()
    one[2] += 1
    assert linear_cka(constant, varied).isnan()
    assert linear_cka(constant, constant).isnan()
    assert linear_cka(one, varied).isnan()  # a single example that differs is as far from all others
    assert linear_cka(varied[:3], varied[:3]).isnan()
    assert float(linear_cka(varied[:4], varied[:4])) == pytest.approx(1)


def test_a_constant_feature_beside_varied_ones_changes_nothing() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(8, 3)), random.normal(size=(8, 3))
    padded = np.concatenate([x, np.full((8, 1), 1e3 / 7)], axis=1)
    value = float(linear_cka(torch.from_numpy(padded), torch.from_numpy(y)))
    assert value == pytest.approx(reference_cka(x, y), rel=1e-9)


def test_the_cosine_of_a_zero_vector_is_not_defined() -> None:
    cosines = row_cosines(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert cosines[0].isnan()
    assert cosines[1] == 1


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_equals_a_loop_and_never_sees_padding(pooling: Pooling, dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    hidden[~mask.bool()] = torch.nan
    expected = []
    for states, real in zip(hidden.float().numpy(), mask.bool().numpy(), strict=True):
        own = states[real].astype(np.float64)
        expected.append({"mean": own.mean(axis=0), "first": own[0], "last": own[-1]}[pooling])
    pooled = pool_tokens(hidden, mask, pooling)
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.numpy(), np.array(expected), rtol=1e-6)
