"""The cosine of two updates equals NumPy's of the dense ones, whatever their factors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lightning.analysis.similarity import delta_cosine
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
