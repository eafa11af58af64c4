"""Intervals of effects against a loop that leaves each example out, and correlations of scores with effects."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_lightning.analysis.behavior import PredictionChanges
from lora_lightning.artefacts.example_measuring import Measured
from lora_lightning.diagnosis.effects import State, divergence_change, loss_change, metric_change
from lora_lightning.diagnosis.sensitivity import rank_correlation
from lora_lightning.statistics.jackknife import Interval, jackknife_interval

Array = NDArray[Any]
EXAMPLES = np.array([4, 4, 4, 0, 0, 7, 7, 7, 7, 9])  # of each prediction; numbers of documents need not follow on


def left_out(numbers: Array, compute: Callable[[Array], float]) -> Interval:
    """An interval from the number without each example in turn."""
    every = np.unique(numbers)
    without = np.array([compute(numbers != example) for example in every])
    return jackknife_interval(compute(numbers == numbers), without)  # noqa: PLR0124  # all


def state(divergences: Array | None, **columns: Array) -> State:
    rows = {"weight": np.ones(12), "score": np.zeros(12)} | columns
    accuracy = float((rows["label"] == rows["prediction"]).mean()) if "label" in rows else math.nan
    nothing = np.zeros(len(EXAMPLES))
    changes = None
    if divergences is not None:
        changes = PredictionChanges(divergences, nothing, nothing, nothing > 0, EXAMPLES)
    return State(Measured({"accuracy": accuracy}, rows), changes)


def assert_equal(found: Interval, expected: Interval) -> None:
    assert [found.value, found.low, found.high] == pytest.approx([expected.value, expected.low, expected.high])
    assert found.low < found.value < found.high


@pytest.mark.parametrize("from_nothing", [True, False])
def test_divergences_are_means_over_predictions_with_intervals_over_examples(from_nothing: bool) -> None:
    random = np.random.default_rng(0)
    first, second = random.exponential(size=(2, len(EXAMPLES)))
    before = state(None if from_nothing else first)
    difference = second - (0 if from_nothing else first)
    expected = left_out(EXAMPLES, lambda kept: float(difference[kept].mean()))
    assert_equal(divergence_change(before, state(second)), expected)
    assert math.isnan(divergence_change(state(None), state(None)).value)


def test_losses_are_means_over_labels_and_metrics_over_examples() -> None:
    random, numbers = np.random.default_rng(1), np.arange(12)
    weights = random.integers(0, 4, 12).astype(np.float64)
    first, second = random.normal(size=(2, 12))
    found = loss_change(state(None, score=first, weight=weights), state(None, score=second, weight=weights))
    own = weights > 0
    expected = left_out(
        numbers[own], lambda kept: float(np.average((first - second)[own][kept], weights=weights[own][kept]))
    )
    assert_equal(found, expected)
    label, one, other = random.integers(0, 2, (3, 12))
    changed = metric_change(
        state(None, label=label, prediction=one), state(None, label=label, prediction=other), "accuracy"
    )
    hits = (other == label).astype(float) - (one == label)
    assert changed.value == pytest.approx(hits.mean())
    assert changed.low <= changed.value <= changed.high


def test_correlations_are_of_ranks_with_ties_as_means() -> None:
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(
        float(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    )
    assert rank_correlation([1, 10, 100], [-3, -2, 5]) == pytest.approx(1)
    assert rank_correlation([1, 10, 100], [3, 2, -5]) == pytest.approx(-1)
    for first, second in (([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 2, math.nan])):
        assert math.isnan(rank_correlation(first, second))
