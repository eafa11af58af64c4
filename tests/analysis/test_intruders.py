"""Intruders against NumPy's SVD in float64, with planted ones, and none where the update follows the weight."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_lightning.analysis.intruders import Intruders, find_intruders, left_singular_vectors

Matrix = NDArray[np.float64]


def decaying(random: np.random.Generator, rows: int, columns: int) -> Matrix:
    """Singular values from 10 down to 1, as far apart as a pretrained weight's strongest."""
    u, _, vh = np.linalg.svd(random.normal(size=(rows, columns)), full_matrices=False)
    return np.asarray(u * np.geomspace(10, 1, min(rows, columns)) @ vh)


def found_in(before: Matrix, after: Matrix, top_k: int = 10, epsilon: float = 0.5) -> Intruders:
    own, _ = left_singular_vectors(torch.from_numpy(before))
    return find_intruders(own, *left_singular_vectors(torch.from_numpy(after)), top_k, epsilon)


def reference(before: Matrix, after: Matrix, top_k: int, epsilon: float) -> Intruders:
    (u, s, _), (u_after, s_after, _) = (np.linalg.svd(matrix, full_matrices=False) for matrix in (before, after))
    u, u_after, s_after = u[:, s > 1e-6 * s[0]], u_after[:, :top_k], s_after.copy()
    similarities = np.abs(u.T @ u_after).max(axis=0)
    new = s_after[:top_k][similarities < epsilon]
    strength = new.max() / s_after[0] if len(new) else 0.0
    return Intruders(len(new), strength, (new**2).sum() / (s_after**2).sum(), similarities.min())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(2, 24), st.integers(2, 24)),
    r=st.integers(1, 3),
    scale=st.sampled_from([0.0, 0.1, 3.0]),
    top_k=st.integers(1, 12),
)
def test_equals_numpy(seed: int, shape: tuple[int, int], r: int, scale: float, top_k: int) -> None:
    random = np.random.default_rng(seed)
    before = decaying(random, *shape)
    after = before + scale * random.normal(size=(shape[0], r)) @ random.normal(size=(r, shape[1]))
    expected = reference(before, after, top_k, epsilon=0.45)
    found = found_in(before, after, top_k, epsilon=0.45)
    np.testing.assert_allclose(astuple(found), astuple(expected), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(60, 60), (60, 90), (90, 60)])
@pytest.mark.parametrize("planted", [1, 3])
def test_planted_intruders_are_found(shape: tuple[int, int], planted: int) -> None:
    random = np.random.default_rng(planted)
    before = decaying(random, *shape)
    u, s, _ = np.linalg.svd(before, full_matrices=False)
    # Each spread evenly over nine weak directions of the weight: a cosine of a third with each of them.
    new = np.stack([u[:, 20 + 9 * i : 29 + 9 * i].mean(axis=1) * 3 for i in range(planted)], axis=1)
    right = np.linalg.qr(random.normal(size=(shape[1], planted)))[0]
    after = before + new * (3 * s[0]) @ right.T
    found = found_in(before, after)
    assert found.count == planted
    assert found.strength == 1  # stronger than anything that the weight had
    assert found.energy == pytest.approx(planted * (3 * s[0]) ** 2 / (after**2).sum(), rel=0.15)
    assert found.least_similarity < 0.4


def test_an_update_along_the_weights_own_directions_has_no_intruders() -> None:
    before = decaying(np.random.default_rng(0), 50, 40)
    u, s, vh = np.linalg.svd(before, full_matrices=False)
    after = before + 0.5 * (u[:, :8] * s[:8]) @ vh[:8]
    found = found_in(before, after)
    assert (found.count, found.strength, found.energy) == (0, 0, 0)
    assert found.least_similarity == pytest.approx(1, abs=1e-6)


def test_what_is_new_beside_a_weight_without_full_rank_is_an_intruder() -> None:
    """An SVD fills up the space that the weight does not reach; such directions are not the weight's own."""
    before = np.diag([5.0, 4.0, 0.0, 0.0])
    after = np.diag([5.0, 4.0, 4.5, 0.0])
    assert found_in(before, after).count == 1


def test_nothing_at_all() -> None:
    nothing = np.zeros((4, 3))
    assert found_in(nothing, nothing).count == 0
    assert found_in(nothing, nothing).least_similarity != found_in(nothing, nothing).least_similarity  # NaN
    assert found_in(nothing, decaying(np.random.default_rng(0), 4, 3)).count == 3
