"""Norms and moments equal NumPy's of the dense matrices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lightning.analysis.norms import base_norm, delta_norms, gradient_norm, layer_norms, moments, total_norms
from lora_lightning.lora.delta import AdapterDelta
from tests.analysis.test_spectrum import deltas, dense_in_numpy, mixed


@settings(deadline=None, max_examples=150)
@given(deltas())
def test_the_norm_of_the_update_is_that_of_the_dense_one(delta: AdapterDelta) -> None:
    assert delta_norms([delta])[0] == pytest.approx(np.linalg.norm(dense_in_numpy(delta)), rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(deltas(scaled=False), st.integers(0, 2**32 - 1))
def test_the_split_into_factors_does_not_matter(delta: AdapterDelta, seed: int) -> None:
    before, after = delta_norms([delta, mixed(delta, seed)])
    assert after == pytest.approx(before, rel=1e-9)


def test_a_zero_update_has_no_norm() -> None:
    assert delta_norms([AdapterDelta("q", torch.randn(4, 6), torch.zeros(5, 4), 2.0)]) == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_moments_are_numpys(dtype: torch.dtype, scale: float) -> None:
    matrix = (scale * (3 + torch.randn(7, 5))).to(dtype)
    exact = matrix.float().numpy().astype(np.float64)
    found = moments(matrix)
    assert found.norm == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert found.std == pytest.approx(exact.std(), rel=1e-9)


def test_moments_add_up_to_those_of_all_entries() -> None:
    parts = [torch.randn(3, 4), 5 + torch.randn(6)]
    exact = np.concatenate([part.numpy().astype(np.float64).flatten() for part in parts])
    both = moments(parts[0]) + moments(parts[1])
    assert (both.norm, both.mean, both.std) == pytest.approx((np.linalg.norm(exact), exact.mean(), exact.std()))


@pytest.mark.parametrize("entries", [[], [2.0, 2.0]])
def test_nothing_varies_where_nothing_differs(entries: list[float]) -> None:
    assert moments(torch.tensor(entries)).std == 0


def test_what_is_not_finite_shows_and_does_not_raise() -> None:
    found = moments(torch.tensor([1.0, math.inf]))
    assert found.norm == math.inf
    assert math.isnan(found.std)


def test_the_norm_of_a_large_weight_keeps_its_digits() -> None:
    weight = torch.full((3000, 1000), 0.1)
    assert base_norm(weight) == pytest.approx(float(np.float32(0.1)) * math.sqrt(3e6), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_are_measured_in_float32(dtype: torch.dtype) -> None:
    parameter = torch.nn.Parameter(torch.ones(40, 50, dtype=dtype))
    assert gradient_norm(parameter) is None
    parameter.grad = torch.full((40, 50), 300.0, dtype=dtype)  # whose squares are no float16 numbers
    assert float(gradient_norm(parameter)) == pytest.approx(300 * math.sqrt(2000), rel=1e-5)


def test_layers_together_are_one_matrix() -> None:
    a = {"p": torch.randn(2, 6), "q": torch.randn(2, 8)}
    b = {"p": torch.randn(5, 2), "q": torch.randn(4, 2)}
    update, weight = {"p": 3.0, "q": 4.0}, {"p": 6.0, "q": 8.0}
    together = total_norms(
        {name: moments(each) for name, each in a.items()},
        {name: moments(each) for name, each in b.items()},
        update,
        weight,
    )
    assert together["delta_norm"] == 5
    assert together["relative_delta_norm"] == 0.5
    assert together["A_norm"] == pytest.approx(float(torch.cat([each.flatten() for each in a.values()]).norm()))
    assert together["B_std"] == pytest.approx(
        float(torch.cat([each.flatten() for each in b.values()]).std(correction=0)), rel=1e-5
    )


def test_against_a_zero_weight_nothing_is_relative() -> None:
    none = moments(torch.zeros(2))
    assert math.isnan(layer_norms(none, none, 1.0, 0.0)["relative_delta_norm"])
