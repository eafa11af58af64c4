"""Cosines, distances and angles of updates equal NumPy's of the dense ones, whatever their factors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lightning.analysis.similarity import (
    cosines_of_products,
    delta_cosine,
    distances_of_products,
    factor_cosine,
    inner_products,
    principal_cosines,
    random_largest_angle,
    random_overlap,
    relative_distance,
    rotated_factors,
    subspace_overlap,
    update_directions,
)
from lora_lightning.lora.delta import AdapterDelta
from tests.analysis.test_spectrum import deltas, dense_in_numpy, mixed


def partner(delta: AdapterDelta, seed: int, nearness: float) -> AdapterDelta:
    """Another update of the same shape and any rank: part noise, part the first."""
    random = np.random.default_rng(seed)
    out_features, in_features = delta.B.shape[0], delta.A.shape[1]
    r = int(random.integers(1, min(out_features, in_features) + 1))
    size = math.sqrt(float(delta.B.double().norm() * delta.A.double().norm()) / math.sqrt(out_features * in_features))
    a = torch.cat([delta.A, torch.tensor(size * random.standard_normal((r, in_features))).float()])
    b = torch.cat([nearness * delta.B, torch.tensor(size * random.standard_normal((out_features, r))).float()], dim=1)
    return AdapterDelta(delta.module, a, b, 0.7)


def dense_cosine(first: AdapterDelta, second: AdapterDelta) -> float:
    left, right = (dense_in_numpy(delta) for delta in (first, second))
    return float((left / np.linalg.norm(left) * (right / np.linalg.norm(right))).sum())


@settings(deadline=None, max_examples=80)
@given(deltas(), st.integers(0, 2**32 - 1), st.sampled_from([-1.0, 0.0, 0.3, 1.0]))
def test_it_is_that_of_the_dense_updates(delta: AdapterDelta, seed: int, nearness: float) -> None:
    other = partner(delta, seed, nearness)
    expected = dense_cosine(delta, other)
    assert delta_cosine(delta, other) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert delta_cosine(other, delta) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(deltas(scaled=False), st.integers(0, 2**32 - 1))
def test_the_split_into_factors_does_not_matter(delta: AdapterDelta, seed: int) -> None:
    other = partner(delta, seed, 0.5)
    assert delta_cosine(mixed(delta, seed), other) == pytest.approx(delta_cosine(delta, other), rel=1e-5, abs=1e-9)
    assert delta_cosine(mixed(delta, seed), delta) == pytest.approx(1, rel=1e-9)


def test_opposite_scaled_zero_and_misfitting_updates() -> None:
    delta = AdapterDelta("q", torch.randn(3, 8), torch.randn(6, 3), 2.0)
    assert delta_cosine(delta, replace(delta, scaling=-0.1)) == pytest.approx(-1)
    assert math.isnan(delta_cosine(delta, replace(delta, B=torch.zeros(6, 3))))
    with pytest.raises(ValueError, match=r"q is \(6, 8\) and k \(8, 6\) \(out, in\)"):
        delta_cosine(delta, AdapterDelta("k", delta.B.T, delta.A.T, 2.0))


def updates(seed: int, count: int, r: int = 3, shape: tuple[int, int] = (12, 9)) -> list[AdapterDelta]:
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (torch.randn(r, shape[1], generator=generator), torch.randn(shape[0], r, generator=generator))
        for _ in range(count)
    ]
    return [AdapterDelta("q", a, b, 0.5 + number) for number, (a, b) in enumerate(pairs)]


def test_distances_and_products_of_all_pairs_are_those_of_the_dense_updates() -> None:
    found = [*updates(0, 3), *updates(1, 1, r=5)]
    dense = [dense_in_numpy(each) for each in found]
    products = inner_products(found)
    np.testing.assert_allclose(products.numpy(), [[(x * y).sum() for y in dense] for x in dense], rtol=1e-5)
    cosines, distances = cosines_of_products(products), distances_of_products(products)
    for i, x in enumerate(dense):
        for j, y in enumerate(dense):
            size = math.sqrt((np.linalg.norm(x) ** 2 + np.linalg.norm(y) ** 2) / 2)
            expected = float(np.linalg.norm(x - y) / size)
            assert relative_distance(found[i], found[j]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert float(distances[i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert float(cosines[i, j]) == pytest.approx(delta_cosine(found[i], found[j]), rel=1e-5, abs=1e-7)
    with pytest.raises(ValueError, match="no angle between them"):
        inner_products([found[0], *updates(0, 1, shape=(9, 12))])


def test_a_rotated_adapter_is_the_same_update_with_other_factors() -> None:
    (update,) = updates(2, 1, r=4)
    rotated = rotated_factors(update)
    assert delta_cosine(update, rotated) == pytest.approx(1, rel=1e-6)
    assert relative_distance(update, rotated) == pytest.approx(0, abs=1e-6)
    for side in ("outputs", "inputs"):
        spaces = [update_directions(each, side) for each in (update, rotated)]
        assert principal_cosines(*spaces).tolist() == pytest.approx([1] * 4, rel=1e-6)  # all angles are 0
        assert subspace_overlap(*spaces) == pytest.approx(1, rel=1e-6)
    assert factor_cosine(update.A, update.A) == pytest.approx(1)
    assert abs(factor_cosine(update.A, rotated.A)) < 0.7
    assert abs(factor_cosine(update.B, rotated.B)) < 0.7


def test_orthogonal_updates_have_right_angles_and_the_distance_of_the_root_of_two() -> None:
    basis = torch.linalg.qr(torch.randn(12, 6, generator=torch.Generator().manual_seed(0))).Q
    first, second = (AdapterDelta("q", half.T[:, :9], half, 1.0) for half in basis.split(3, dim=1))
    assert delta_cosine(first, second) == pytest.approx(0, abs=1e-6)
    assert subspace_overlap(*(update_directions(each, "outputs") for each in (first, second))) < 1e-12
    same_size = replace(second, scaling=float(dense_norm(first) / dense_norm(second)))
    assert relative_distance(first, same_size) == pytest.approx(math.sqrt(2), rel=1e-6)
    assert relative_distance(first, replace(first, scaling=-1.0)) == pytest.approx(2)


def dense_norm(update: AdapterDelta) -> float:
    return float(np.linalg.norm(dense_in_numpy(update)))


def test_random_subspaces_overlap_as_much_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)

    def space(r: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(30, r, generator=generator, dtype=torch.float64)).Q

    found = [subspace_overlap(space(4), space(6)) for _ in range(300)]
    assert np.mean(found) == pytest.approx(random_overlap(30, 4, 6), rel=0.05)


def test_directions_leave_out_what_is_rounding() -> None:
    (update,) = updates(3, 1, r=2)
    twice = AdapterDelta("q", torch.cat([update.A, update.A]), torch.cat([update.B, update.B], dim=1), 1.0)
    assert update_directions(twice, "inputs").shape == (9, 2)
    empty = update_directions(replace(update, B=torch.zeros(12, 2)), "outputs")
    assert empty.shape == (12, 0)
    assert math.isnan(subspace_overlap(empty, update_directions(update, "outputs")))


def test_random_subspaces_have_a_large_angle_in_wide_spaces() -> None:
    assert random_largest_angle(((5, 5),)) == pytest.approx(0, abs=1e-4)
    assert 30 < random_largest_angle(((2, 1),)) < 60  # uniform between 0 and 90
    narrow, wide = random_largest_angle(((20, 4),)), random_largest_angle(((400, 4),))
    assert 70 < narrow < wide < 90
    assert random_largest_angle(((20, 4), (400, 4))) == pytest.approx(wide, abs=0.1)  # the larger one of both
