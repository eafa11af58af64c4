"""Singular values and ranks equal NumPy's of the dense dW, and do not depend on how dW is split into factors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lightning.analysis.spectrum import (
    common_energy_rank,
    delta_core,
    effective_rank,
    energy_rank,
    singular_values,
    stable_rank,
)
from lora_lightning.lora.delta import AdapterDelta

# Below this share of the largest, NumPy's own SVD of the dense matrix has no digits left that could be compared.
NOISE = 1e-9


@st.composite
def deltas(draw: st.DrawFn, scaled: bool = True) -> AdapterDelta:
    """Random updates of any shape, r from 1 to min(out, in); columns of B and rows of A scaled against each other."""
    out_features, in_features = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    r = draw(st.integers(1, min(out_features, in_features)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    a, b = random.standard_normal((r, in_features)), random.standard_normal((out_features, r))
    if scaled:
        against = 10.0 ** random.uniform(-8, 8, r)
        a, b = a / against[:, None], b * against
        a, b = a * 10.0 ** draw(st.integers(-20, 10)), b * 10.0 ** draw(st.integers(-20, 10))
    scaling = draw(st.sampled_from([1e-3, 0.5, 2.0, 16 / math.sqrt(8)]))
    return AdapterDelta("layer.0.query", torch.tensor(a).float(), torch.tensor(b).float(), scaling)


def dense_in_numpy(delta: AdapterDelta) -> np.ndarray:
    return delta.scaling * (delta.B.numpy().astype(np.float64) @ delta.A.numpy().astype(np.float64))


def numpy_effective_rank(sigma: np.ndarray) -> float:
    shares = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def assert_same_spectrum(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=NOISE * expected[0])


@settings(deadline=None, max_examples=150)
@given(deltas())
def test_singular_values_are_those_of_the_dense_update(delta: AdapterDelta) -> None:
    expected = np.linalg.svd(dense_in_numpy(delta), compute_uv=False)
    (found,) = singular_values([delta])
    assert found.dtype == torch.float64
    assert found.shape == (delta.r,)
    assert_same_spectrum(found.numpy(), expected[: delta.r])
    norm = np.linalg.norm(dense_in_numpy(delta))
    np.testing.assert_allclose(torch.linalg.vector_norm(delta_core(delta)), norm, rtol=1e-9)


@settings(deadline=None, max_examples=150)
@given(deltas())
def test_ranks_are_those_of_the_dense_update(delta: AdapterDelta) -> None:
    sigma = np.linalg.svd(dense_in_numpy(delta), compute_uv=False)
    (found,) = singular_values([delta])
    assert float(effective_rank(found)) == pytest.approx(numpy_effective_rank(sigma), rel=1e-5)
    assert float(stable_rank(found)) == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)
    energy = np.cumsum(sigma**2) / (sigma**2).sum()
    for share in (0.9, 0.99):
        expected = int(np.searchsorted(energy, share)) + 1
        if abs(energy[expected - 1] - share) > 1e-9:  # otherwise rounding decides
            assert int(energy_rank(found, share)) == expected


def mixed(delta: AdapterDelta, seed: int) -> AdapterDelta:
    """The same update from other factors, (R^-1 A, B R) with a random R whose condition is at most 10."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((delta.r, delta.r)))[0] for _ in range(2))
    mixing = left @ np.diag(random.uniform(0.3, 3.0, delta.r)) @ right
    a = np.linalg.solve(mixing, delta.A.numpy().astype(np.float64))
    b = delta.B.numpy().astype(np.float64) @ mixing
    return AdapterDelta(delta.module, torch.tensor(a), torch.tensor(b), delta.scaling)


@settings(deadline=None, max_examples=100)
@given(deltas(scaled=False), st.integers(0, 2**32 - 1))
def test_the_split_into_factors_does_not_matter(delta: AdapterDelta, seed: int) -> None:
    before, after = singular_values([delta, mixed(delta, seed)])
    assert_same_spectrum(after.numpy(), before.numpy())
    assert float(effective_rank(after)) == pytest.approx(float(effective_rank(before)), rel=1e-5)


def random_delta(out_features: int, in_features: int, r: int, seed: int = 0) -> AdapterDelta:
    random = torch.Generator().manual_seed(seed)
    return AdapterDelta(
        "q", torch.randn(r, in_features, generator=random), torch.randn(out_features, r, generator=random), 2.0
    )


def test_layers_of_several_shapes_come_back_in_their_order() -> None:
    shapes = [(8, 6, 2), (6, 8, 2), (8, 6, 3), (8, 6, 2)]
    batch = [random_delta(*shape, seed=number) for number, shape in enumerate(shapes)]
    for delta, found in zip(batch, singular_values(batch), strict=True):
        expected = np.linalg.svd(dense_in_numpy(delta), compute_uv=False)[: delta.r]
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_rank_above_the_smaller_side_gives_as_many_values_as_there_are() -> None:
    delta = random_delta(3, 5, r=7)
    (found,) = singular_values([delta])
    np.testing.assert_allclose(found, np.linalg.svd(dense_in_numpy(delta), compute_uv=False), rtol=1e-6)


def test_nearly_canceling_factors_keep_their_digits() -> None:
    """||A|| ||B|| is 10^12 times ||dW||: what is left would be noise in float32, or from Gram matrices."""
    b = torch.tensor([[1e6, 1e6], [0.0, 1.0], [0.0, 0.0]])
    a = torch.tensor([[1e6, 0.0, 1.0], [-1e6, 1.0, 0.0]])
    delta = AdapterDelta("q", a, b, 1.0)
    expected = np.linalg.svd(dense_in_numpy(delta), compute_uv=False)[:2]
    np.testing.assert_allclose(singular_values([delta])[0], expected, rtol=1e-5)


def test_no_adapters_give_no_spectra() -> None:
    assert singular_values([]) == []


@pytest.mark.parametrize("spectrum", [torch.zeros(4), torch.zeros(0)])
def test_a_zero_update_has_rank_zero(spectrum: torch.Tensor) -> None:
    assert effective_rank(spectrum) == stable_rank(spectrum) == energy_rank(spectrum, 0.9) == 0


def test_a_fresh_and_a_pruned_adapter_are_zero_updates() -> None:
    fresh = AdapterDelta("q", torch.randn(4, 6), torch.zeros(5, 4), 2.0)
    pruned = AdapterDelta("q", torch.zeros(0, 6), torch.zeros(5, 0), 2.0)  # AdaLoRA may take a layer's every rank
    assert [values.tolist() for values in singular_values([fresh, pruned])] == [[0.0] * 4, []]


def test_an_adapter_that_is_not_finite_has_no_rank_and_spoils_no_other() -> None:
    bad, good = random_delta(6, 5, 3), random_delta(6, 5, 3, seed=1)
    bad.A[0, 0] = torch.inf
    found_bad, found_good = singular_values([bad, good])
    for value in (found_bad.sum(), effective_rank(found_bad), stable_rank(found_bad), energy_rank(found_bad, 0.9)):
        assert value.isnan()
    assert found_good.isfinite().all()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_k_equal_singular_values_have_rank_k_by_every_measure(k: int) -> None:
    spectrum = torch.zeros(16, dtype=torch.float64)
    spectrum[:k] = 0.3
    assert float(effective_rank(spectrum)) == pytest.approx(k)
    assert float(stable_rank(spectrum)) == pytest.approx(k)
    assert int(energy_rank(spectrum, 0.99)) == k


def test_energy_rank_counts_squares() -> None:
    spectrum = torch.tensor([3.0, 1.0, 1.0])  # shares of the energy: 9 / 11, 10 / 11, 1
    assert [int(energy_rank(spectrum, share)) for share in (0.8, 0.9, 0.99, 1.0)] == [1, 2, 3, 3]


def flat(k: int, size: float = 1.0) -> torch.Tensor:
    """Rank k, of 16, every direction as strong."""
    return torch.cat([torch.full((k,), size), torch.zeros(16 - k)]).double()


def test_no_single_adapter_decides_the_common_rank() -> None:
    assert common_energy_rank([*[flat(16)] * 36, flat(1, 1000.0)], 0.99) == 16
    assert common_energy_rank([*[flat(1)] * 36, flat(16, 1000.0)], 0.99) == 1
    assert common_energy_rank([*[flat(2)] * 9, flat(16)], 0.99) == 2
    assert common_energy_rank([*[flat(2)] * 8, *[flat(16)] * 2], 0.99) == 16
    assert common_energy_rank([flat(2), flat(3)], 0.99) == 3  # of few adapters all count
    assert common_energy_rank([], 0.99) == common_energy_rank([torch.zeros(3)], 0.99) == 0
