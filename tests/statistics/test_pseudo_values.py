"""Pseudo-values in closed form against brute force: scikit-learn's metric without each example in turn."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from lora_lightning.statistics import pseudo_values as pv


def brute_force(metric: Callable[..., float], *columns: np.ndarray) -> np.ndarray:
    n = len(columns[0])
    without = np.array([metric(*(np.delete(column, place) for column in columns)) for place in range(n)])
    return metric(*columns) + (n - 1) * (without.mean() - without)


def labels_and_predictions(seed: int, classes: int, n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(classes), 5), random.integers(0, classes, n - 5 * classes)])
    return labels, np.where(random.random(n) < 0.6, labels, random.integers(0, classes, n))


@pytest.mark.parametrize("seed", range(3))
def test_auroc_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.random(60) < 0.3
    scores = np.round(labels * 0.4 + random.normal(size=60), 1)
    found = pv.auroc_pseudo_values(labels, scores)
    np.testing.assert_allclose(found, brute_force(metrics.roc_auc_score, labels, scores), atol=1e-10)
    assert found.mean() == pytest.approx(metrics.roc_auc_score(labels, scores))


@pytest.mark.parametrize("seed", range(3))
def test_f1(seed: int) -> None:
    labels, predictions = labels_and_predictions(seed, 2)
    found = pv.f1_pseudo_values(labels == 1, predictions == 1)
    np.testing.assert_allclose(found, brute_force(metrics.f1_score, labels, predictions), atol=1e-10)


@pytest.mark.parametrize("classes", [2, 5, 9])
def test_macro_f1_and_matthews(classes: int) -> None:
    labels, predictions = labels_and_predictions(classes, classes)

    def macro(one: np.ndarray, other: np.ndarray) -> float:
        return float(metrics.f1_score(one, other, average="macro", zero_division=0.0))

    found = pv.macro_f1_pseudo_values(labels, predictions)
    np.testing.assert_allclose(found, brute_force(macro, labels, predictions), atol=1e-10)
    found = pv.matthews_pseudo_values(labels, predictions)
    np.testing.assert_allclose(found, brute_force(metrics.matthews_corrcoef, labels, predictions), atol=1e-9)


def test_matthews_of_a_large_test_set() -> None:
    """The product of two squares of 200,000 does not fit into 64 bits."""
    labels, predictions = (np.tile(each, 4000) for each in labels_and_predictions(0, 2, 50))
    found = pv.matthews_pseudo_values(labels, predictions)
    assert found is not None
    assert found.mean() == pytest.approx(metrics.matthews_corrcoef(labels, predictions))


def test_pearson() -> None:
    random = np.random.default_rng(0)
    first = random.normal(3, 2, 50)
    second = first + random.normal(size=50)
    found = pv.pearson_pseudo_values(first, second)
    np.testing.assert_allclose(found, brute_force(lambda x, y: np.corrcoef(x, y)[0, 1], first, second), atol=1e-10)


def test_log_perplexity_over_documents() -> None:
    random = np.random.default_rng(0)
    loss, tokens = random.gamma(3, 1, 30), random.integers(1, 400, 30).astype(float)
    found = pv.weighted_mean_pseudo_values(loss, tokens)
    np.testing.assert_allclose(found, brute_force(lambda x, w: np.average(x, weights=w), loss, tokens), atol=1e-10)


def test_a_mean_is_its_own_pseudo_values() -> None:
    hits = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    np.testing.assert_allclose(pv.weighted_mean_pseudo_values(hits, np.ones(40)), hits, atol=1e-12)


@pytest.mark.parametrize(
    "found",
    [
        pv.auroc_pseudo_values(np.array([True, False, False]), np.arange(3.0)),
        pv.f1_pseudo_values(np.arange(10) < 4, np.arange(10) < 6),
        pv.macro_f1_pseudo_values(np.repeat([0, 1], [10, 4]), np.repeat([0, 1], [10, 4])),
        pv.macro_f1_pseudo_values(np.zeros(9, int), np.repeat([0, 1], [8, 1])),  # a class that is only predicted
        pv.matthews_pseudo_values(np.repeat([0, 1], [10, 10]), np.zeros(20, int)),
        pv.matthews_pseudo_values(np.repeat([0, 1], [10, 4]), np.repeat([0, 1], [10, 4])),
        pv.pearson_pseudo_values(np.ones(9), np.arange(9.0)),
        pv.weighted_mean_pseudo_values(np.ones(3), np.array([1.0, 0.0, 0.0])),
        pv.pseudo_values(0.5, np.array([0.5, np.nan])),
        pv.macro_f1_pseudo_values(np.zeros(0, int), np.zeros(0, int)),
    ],
)
def test_where_they_do_not_hold_there_are_none(found: np.ndarray | None) -> None:
    assert found is None
