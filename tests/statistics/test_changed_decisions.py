"""Metrics of decisions: what one decision can change, and how often a loss of the margin is proven to be less."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq

from lora_lightning.analysis.metric_outcomes import largest_change, metric_outcomes
from lora_lightning.statistics.changed_decisions import largest_f1_loss, largest_macro_f1_loss, largest_matthews_loss
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.one_model import example_difference

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def f1(table: Floats) -> float:
    return float(2 * table[1, 1] / (table[1].sum() + table[:, 1].sum()))


def macro_f1(table: Floats) -> float:
    sizes = table.sum(0) + table.sum(1)
    return float(np.mean(2 * np.diag(table)[sizes > 0] / sizes[sizes > 0]))


def matthews(table: Floats) -> float:
    labeled, predicted, total = table.sum(1), table.sum(0), table.sum()
    spread = (total**2 - predicted @ predicted) * (total**2 - labeled @ labeled)
    return float((np.trace(table) * total - labeled @ predicted) / np.sqrt(spread))


METRICS: dict[str, Callable[[Floats], float]] = {"f1": f1, "macro_f1": macro_f1, "matthews_correlation": matthews}
LARGEST: dict[str, Callable[[Labels, Labels], float]] = {
    "f1": lambda labels, predictions: largest_f1_loss(labels == 1, predictions == 1),
    "macro_f1": largest_macro_f1_loss,
    "matthews_correlation": largest_matthews_loss,
}


def confusion(labels: Labels, predictions: Labels, classes: int) -> Floats:
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, predictions), 1)
    return table


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("classes", [2, 4])
def test_no_changed_decision_loses_more(metric: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, 150, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    predictions = np.where(rng.random(150) < 0.8, labels, rng.integers(classes, size=150))
    value = METRICS[metric](confusion(labels, predictions, classes))
    losses = []
    for place in range(150):
        for decision in range(classes):
            changed = predictions.copy()
            changed[place] = decision
            losses.append(150 * (value - METRICS[metric](confusion(labels, changed, classes))))
    assert LARGEST[metric](labels, predictions) == pytest.approx(max(losses))


def joint_shares(shares: list[float], losses: float, gains: float) -> Floats:
    """Shares of (label, decision of the full adapter, decision of the truncated one): 85 % right, class 1 changes."""
    classes = len(shares)
    found = np.zeros((classes,) * 3)
    for label, share in enumerate(shares):
        for decision in range(classes):
            found[label, decision, decision] = share * (0.85 if label == decision else 0.15 / (classes - 1))
    found[1, 1, :2] += (losses, -losses)
    found[1, 0, :2] -= (gains, -gains)
    return found


def proven_share(metric: str, shares: list[float], gains: float, examples: int, margin: float) -> float:
    """How often a loss of exactly the margin is proven to be less, in 400 sets of examples."""
    value, classes, repeats = METRICS[metric], len(shares), 400

    def loss(losses: float) -> float:
        joint = joint_shares(shares, losses, gains)
        return value(joint.sum(2)) - value(joint.sum(1)) - margin

    joint = joint_shares(shares, float(brentq(loss, 0, 0.8 * shares[1])), gains)
    cells, rng, proven, found = np.array(list(np.ndindex(*joint.shape))), np.random.default_rng(3), 0, 0
    for counts in rng.multinomial(examples, joint.ravel(), size=repeats):
        labels, full, truncated = np.repeat(cells, counts, axis=0).T
        rows = [{"label": labels, "prediction": each, "weight": np.ones(examples)} for each in (full, truncated)]
        values = [value(confusion(labels, each, classes)) for each in (full, truncated)]
        first, second = (metric_outcomes(metric, row, at) for row, at in zip(rows, values, strict=True))
        if first is not None and second is not None:
            found += 1
            difference = example_difference(second - first, largest_change(metric, rows[0]))
            proven += difference.p_value_above(-margin) <= ERROR_RATE
    assert found > 0.8 * repeats
    return proven / found


@pytest.mark.parametrize(("examples", "margin"), [(100, 0.05), (300, 0.02), (1000, 0.005)])
@pytest.mark.parametrize(
    ("metric", "shares"),
    [
        ("f1", [0.4, 0.6]),
        ("f1", [0.8, 0.2]),
        ("matthews_correlation", [0.3, 0.7]),
        ("macro_f1", [0.2, 0.2, 0.6]),
    ],
)
@pytest.mark.parametrize("gains", [0.0, 0.01])
def test_a_loss_of_the_margin_is_rarely_proven_to_be_less(
    metric: str, shares: list[float], gains: float, examples: int, margin: float
) -> None:
    allowed = 0.06 + 2 * np.sqrt(0.06 * 0.94 / 400)
    assert proven_share(metric, shares, gains, examples, margin) <= allowed


@pytest.mark.parametrize(("examples", "margin"), [(100, 0.05), (300, 0.02), (1000, 0.005)])
@pytest.mark.parametrize("lost", [1.0, 0.4])
def test_the_f1_score_of_answers_is_tested_with_what_a_question_can_lose(
    lost: float, examples: int, margin: float
) -> None:
    rng, proven, gains = np.random.default_rng(2), 0, 0.01
    losses = (margin + 0.5 * gains) / lost
    for counts in rng.multinomial(examples, [losses, gains, 1 - losses - gains], size=300):
        differences = np.repeat([-lost, 0.5, 0.0], counts)
        found = example_difference(differences, largest_change("f1", {"f1": differences, "has_answer": differences}))
        proven += found.p_value_above(-margin) <= ERROR_RATE
    assert proven / 300 <= 0.06 + 2 * np.sqrt(0.06 * 0.94 / 300)


def test_the_area_under_the_curve_is_tested_with_the_pairs_that_an_example_can_lose() -> None:
    rng, proven = np.random.default_rng(4), 0
    for _ in range(200):
        positive = np.arange(300) < 60
        scores = rng.normal(0, 1, 300) + 6 * positive
        moved = np.where(positive & (rng.random(300) < 0.01), -9.0, scores)  # loses 1 point on average
        rows = [{"is_out_of_scope": positive, "out_of_scope_score": each} for each in (scores, moved)]
        areas = [float((row[positive][:, None] > row[~positive]).mean()) for row in (scores, moved)]
        full, other = (metric_outcomes("out_of_scope_auroc", row, at) for row, at in zip(rows, areas, strict=True))
        assert full is not None
        assert other is not None
        limit = largest_change("out_of_scope_auroc", rows[0])
        assert limit == pytest.approx(5.0)
        proven += example_difference(other - full, limit).p_value_above(-0.0099) <= ERROR_RATE
    assert proven / 200 <= 0.06


@pytest.mark.parametrize("metric", METRICS)
def test_no_changed_decision_is_no_proof_on_few_examples(metric: str) -> None:
    labels = np.tile([0, 1], 20)
    rows = {"label": labels, "prediction": np.where(np.arange(40) < 6, 1 - labels, labels), "weight": np.ones(40)}
    limit = largest_change(metric, rows)
    few, many = (example_difference(np.zeros(examples), limit) for examples in (40, 40_000))
    assert few.p_value_above(-0.005) > 0.2
    assert many.p_value_above(-0.005) <= ERROR_RATE
    assert few.interval.low < -0.01


def test_documents_change_tokens_by_their_length() -> None:
    rows = {"score": np.array([-1.0, -2.0]), "weight": np.array([3.0, 1.0]), "hits": np.array([2.0, 1.0])}
    assert largest_change("next_token_accuracy", rows) == pytest.approx(1.5)
    assert largest_change("perplexity", rows) is None
