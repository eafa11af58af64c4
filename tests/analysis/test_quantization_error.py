"""What quantizing does to a weight: planted errors, adapters built to cancel them, and known distributions."""

import math

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from lora_lightning.analysis.quantization_error import canceled_share, reachable_share, relative_error, weight_shape
from lora_lightning.lora.delta import AdapterDelta


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def update_from(matrix: torch.Tensor, r: int) -> AdapterDelta:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return AdapterDelta("q", (s[:r, None] * vh[:r]).float() / 4, u[:, :r].float() * 2, 2.0)


def test_an_adapter_that_was_built_to_cancel_the_error_cancels_all_of_it() -> None:
    error = drawn(24, 3) @ drawn(3, 16, seed=1)
    update = update_from(error, 3)
    assert canceled_share(update, error) == pytest.approx(1, rel=1e-5)
    assert canceled_share(AdapterDelta("q", update.A, -update.B, 1.0), error) == pytest.approx(-0.5, rel=1e-5)
    assert reachable_share(error, 3) == pytest.approx(1, rel=1e-5)


def test_what_is_orthogonal_to_the_error_does_not_count() -> None:
    error = drawn(24, 16)
    learnt = drawn(24, 16, seed=1)
    learnt -= (learnt * error).sum() / error.square().sum() * error
    assert canceled_share(update_from(learnt, 16), error) == pytest.approx(0, abs=1e-6)
    both = update_from(learnt + 0.25 * error, 16)
    assert canceled_share(both, error) == pytest.approx(0.25, rel=1e-5)


def test_the_best_update_of_a_rank_reaches_what_the_spectrum_allows() -> None:
    error = drawn(20, 30)
    values = np.linalg.svd(error.double().numpy(), compute_uv=False)
    for r in (1, 4, 20):
        expected = (values[:r] ** 2).sum() / (values**2).sum()
        assert reachable_share(error, r) == pytest.approx(expected, rel=1e-4)
        assert canceled_share(update_from(error, r), error) == pytest.approx(expected, rel=1e-4)


def test_errors_of_nf4_are_those_of_normal_weights() -> None:
    weight = drawn(64, 128)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    quantized = functional.dequantize_4bit(packed, state)
    expected = np.linalg.norm(weight.numpy() - quantized.numpy()) / np.linalg.norm(weight.numpy())
    assert relative_error(weight, quantized) == pytest.approx(expected, rel=1e-5)
    assert 0.08 < relative_error(weight, quantized) < 0.11
    assert relative_error(weight, weight) == 0


def test_outliers_and_kurtosis_of_known_distributions() -> None:
    normal = weight_shape(drawn(400, 500))
    assert normal.excess_kurtosis == pytest.approx(0, abs=0.05)
    assert normal.outlier_share == pytest.approx(6.3e-5, abs=5e-5)
    planted = drawn(400, 500)
    planted[0, :50] = 30.0
    found = weight_shape(planted)
    assert found.outlier_share == pytest.approx(50 / 200_000, rel=0.3)
    assert found.excess_kurtosis > 20
    assert found.largest > 25
    signs = weight_shape(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert signs.excess_kurtosis == pytest.approx(-2)
    assert math.isnan(weight_shape(torch.ones(3, 3)).excess_kurtosis)
