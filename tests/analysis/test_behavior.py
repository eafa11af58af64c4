"""Differences of predictions against NumPy, flips and greedy matches against lists that are counted by hand."""

import numpy as np
import pytest
import torch

from lora_lightning.analysis.behavior import (
    Decisions,
    PredictionChanges,
    compare_predictions,
    count_flips,
    leading_match,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def test_differences_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 7, 5))
    labels = np.array([0, 4, -100, 2, 1, -100, 3])
    found = compare_predictions(
        torch.tensor(first).float(), torch.tensor(second).float(), torch.tensor(labels), torch.arange(7) // 2
    )
    p, q = softmax(first), softmax(second)
    np.testing.assert_allclose(found.divergences, (p * np.log(p / q)).sum(axis=1), rtol=1e-5)
    known = labels >= 0
    rows = np.arange(7)[known]
    np.testing.assert_allclose(found.probability_changes[known], (q - p)[rows, labels[known]], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.loss_changes[known], np.log(p / q)[rows, labels[known]], rtol=1e-4, atol=1e-6)
    assert np.isnan(found.probability_changes[~known]).all()
    assert np.isnan(found.loss_changes[~known]).all()
    assert (found.same_top == (p.argmax(axis=1) == q.argmax(axis=1))).all()
    assert found.examples.tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_the_same_predictions_differ_in_nothing() -> None:
    logits = torch.tensor([[1e3, 0.0, -torch.inf], [2.0, 2.0, 2.0]])
    found = compare_predictions(logits, logits, torch.tensor([0, 1]), torch.arange(2))
    for values in (found.divergences, found.probability_changes, found.loss_changes):
        assert (values == 0).all()
    assert found.same_top.all()
    both = PredictionChanges.joined([found, found])
    assert both.examples.tolist() == [0, 1, 0, 1]
    assert len(both.divergences) == len(both.same_top) == 4


def test_flips_are_counted_by_what_is_right() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    first = np.array([0, 0, 1, 0, 1, 0])
    second = np.array([0, 1, 1, 1, 1, 1])
    found = count_flips(Decisions(first, first == labels), Decisions(second, second == labels))
    assert (found.examples, found.same, found.lost, found.gained, found.other) == (6, 3, 1, 1, 1)
    assert found.agreement == 0.5


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [([1, 2, 3, 4], [1, 2, 9, 4], 0.5), ([1, 2], [1, 2, 3, 4], 0.5), ([], [], 1.0), ([1], [2], 0.0), ([7], [7], 1.0)],
)
def test_a_completion_matches_up_to_the_first_other_token(first: list[int], second: list[int], share: float) -> None:
    assert leading_match(first, second) == leading_match(second, first) == share
