"""Differences of outputs equal NumPy's in float64, over any batches, without padding."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_lightning.analysis.outputs import OutputComparison, Outputs, kl_divergence

PADDING = -torch.inf


def logits(seed: int, rows: int = 70, choices: int = 5) -> Tensor:
    return 3 * torch.randn(rows, choices, generator=torch.Generator().manual_seed(seed))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_every_number_equals_numpys() -> None:
    p, q = logits(0), logits(1)
    comparison = OutputComparison()
    for rows in (slice(0, 1), slice(1, 70)):
        first, second = (Outputs(x[rows], "categorical", x[rows].argmax(dim=-1)) for x in (p, q))
        comparison.update(first, second)
    found = comparison.result()
    a, b = p.double().numpy(), q.double().numpy()
    assert found.max_logit_difference == pytest.approx(np.abs(a - b).max(), rel=1e-12)
    assert found.mean_logit_difference == pytest.approx(np.abs(a - b).mean(), rel=1e-12)
    assert found.largest_logit == pytest.approx(np.abs(a).max(), rel=1e-12)
    divergence = (np.exp(log_softmax(a)) * (log_softmax(a) - log_softmax(b))).sum(axis=-1).mean()
    assert found.kl_divergence == pytest.approx(divergence, rel=1e-12)
    assert found.flipped_share == pytest.approx((a.argmax(-1) != b.argmax(-1)).mean())
    assert found.decisions == 70


def test_padding_counts_nowhere() -> None:
    p, q = logits(0, rows=4), logits(1, rows=4)
    padding = torch.full((4, 3), PADDING)
    wide_p, wide_q = torch.cat([p, padding], dim=1), torch.cat([q, padding], dim=1)
    results = []
    for first, second in ((p, q), (wide_p, wide_q)):
        comparison = OutputComparison()
        comparison.update(*(Outputs(x, "categorical", torch.zeros(4)) for x in (first, second)))
        results.append(comparison.result())
    assert results[0] == results[1]
    assert math.isfinite(results[0].kl_divergence)


def test_several_labels_are_as_many_distributions() -> None:
    p, q = logits(0).double(), logits(1).double()
    left, right = (1 / (1 + np.exp(-x.numpy())) for x in (p, q))
    expected = left * np.log(left / right) + (1 - left) * np.log((1 - left) / (1 - right))
    np.testing.assert_allclose(kl_divergence(p, q, "bernoulli").numpy(), expected.ravel(), rtol=1e-7, atol=1e-12)


def test_a_number_has_no_divergence_and_no_decisions() -> None:
    comparison = OutputComparison()
    nothing = torch.empty(0, dtype=torch.int64)
    comparison.update(Outputs(torch.zeros(3, 1), "number", nothing), Outputs(torch.ones(3, 1), "number", nothing))
    found = comparison.result()
    assert found.max_logit_difference == found.mean_logit_difference == 1
    assert math.isnan(found.kl_divergence)
    assert math.isnan(found.flipped_share)


def test_a_broken_logit_is_not_overlooked() -> None:
    comparison = OutputComparison()
    broken = torch.tensor([[0.0, torch.nan]])
    decisions = torch.zeros(1)
    comparison.update(Outputs(torch.zeros(1, 2), "categorical", decisions), Outputs(broken, "categorical", decisions))
    assert math.isnan(comparison.result().max_logit_difference)
