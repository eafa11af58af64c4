"""The threshold with the best F1, against every cut in NumPy, and the metrics that follow it, scikit-learn's."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, LabelSpace, ThresholdMetrics, classification_metrics
from lora_lightning.metrics.decision_threshold import best_f1_threshold

BINARY = LabelSpace(["no", "yes"])
SEVERAL = LabelSpace(list("abc"), problem_type=MULTI_LABEL)


def f1_at(scores: Any, applies: Any, threshold: float) -> float:
    said = scores >= threshold
    return float(2 * (said & applies).sum() / (said.sum() + applies.sum()))


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_has_a_better_f1(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.random(30).round(seed % 3 + 1).astype(np.float32)  # many are equal
    applies = random.random(30) < scores * 0.6
    applies[0] = True
    found = best_f1_threshold(torch.from_numpy(scores), torch.from_numpy(applies))
    best = max(f1_at(scores, applies, cut) for cut in scores)
    assert f1_at(scores, applies, found) == pytest.approx(best)
    equals = [cut for cut in np.unique(scores) if f1_at(scores, applies, cut) == pytest.approx(best)]
    assert found <= max(equals)  # of equally good thresholds the highest
    assert f1_at(scores, applies, max(equals)) == f1_at(scores, applies, found)
    assert (scores >= found).sum() == (scores >= max(equals)).sum()


@pytest.mark.parametrize(
    ("scores", "applies", "expected"),
    [
        ([0.2, 0.4, 0.8], [0, 0, 1], 0.6),  # halfway
        ([0.2, 0.4, 0.8], [1, 1, 1], 0.2),  # the lowest
        ([0.2, 0.4, 0.8], [0, 0, 0], 0.5),  # nothing to find
        ([0.2, float("nan")], [0, 1], 0.5),
        ([], [], 0.5),
        ([0.3], [1], 0.3),
    ],
)
def test_edges(scores: list[float], applies: list[int], expected: float) -> None:
    found = best_f1_threshold(torch.tensor(scores), torch.tensor(applies, dtype=torch.int64))
    assert found == pytest.approx(expected)


def test_between_neighbouring_floats_the_higher_one_is_the_threshold() -> None:
    low = torch.tensor(0.7)
    for _ in range(2):  # what lies halfway is rounded up and down in turn
        high = torch.nextafter(low, torch.tensor(1.0))
        assert best_f1_threshold(torch.stack([low, high]), torch.tensor([0, 1])) == float(high)
        low = high


def filled(space: LabelSpace, rows: int = 60) -> tuple[ThresholdMetrics, np.ndarray, np.ndarray]:
    """Metrics of two batches, the probabilities that count, which are too high, and whether the label applies."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, len(space.names), generator=generator)
    chance = torch.rand(logits.shape, generator=generator)
    applies = chance < 0.4 * logits.sigmoid()
    logits[:, 0 if space is SEVERAL else 1 :] += 1.5
    target = applies.float() if space is SEVERAL else applies[:, 1].long()
    metrics = ThresholdMetrics(space)
    for part in (slice(0, 25), slice(25, None)):
        metrics.update(logits[part], target[part], torch.tensor(0.5))
    scores = logits.sigmoid() if space is SEVERAL else logits.softmax(dim=1)[:, 1]
    return metrics, scores.numpy(), target.numpy().astype(bool)


def test_two_labels_at_the_threshold() -> None:
    metrics, scores, applies = filled(BINARY)
    threshold = metrics.choose_threshold()
    assert threshold == best_f1_threshold(torch.from_numpy(scores), torch.from_numpy(applies))
    found = metrics.compute(threshold)
    for name, reference in {
        "accuracy": accuracy_score,
        "f1": f1_score,
        "precision": precision_score,
        "recall": recall_score,
        "matthews_correlation": matthews_corrcoef,
    }.items():
        for chosen, suffix in ((0.5, ""), (threshold, "_at_threshold")):
            assert float(found[name + suffix]) == pytest.approx(reference(applies, scores >= chosen), abs=1e-6)
    assert found["f1_at_threshold"] > found["f1"] + 0.02
    assert set(found) == set(metrics.names())


def test_several_labels_at_the_threshold() -> None:
    metrics, scores, applies = filled(SEVERAL)
    threshold = metrics.choose_threshold()
    found, said = metrics.compute(threshold), scores >= threshold
    assert float(found["micro_f1_at_threshold"]) == pytest.approx(f1_score(applies, said, average="micro"))
    assert float(found["macro_f1_at_threshold"]) == pytest.approx(f1_score(applies, said, average="macro"))
    assert float(found["exact_match_at_threshold"]) == pytest.approx((applies == said).all(axis=1).mean())
    assert found["micro_f1_at_threshold"] > found["micro_f1"] + 0.02
    assert set(found) == set(metrics.names())
    assert "mean_average_precision_at_threshold" not in found  # of probabilities


def test_only_the_metrics_that_the_data_asks_for_are_reported() -> None:
    metrics = ThresholdMetrics(LabelSpace(["no", "yes"], metrics=["f1", "calibration_error"]))
    assert metrics.names() == ["loss", "f1", "calibration_error", "f1_at_threshold"]
    assert metrics.compute(0.3) == {}


def test_forgetting_forgets_the_scores_too() -> None:
    metrics, *_ = filled(BINARY)
    metrics.reset()
    metrics.update(torch.tensor([[0.0, 2.0], [0.0, 1.0]]), torch.tensor([1, 0]), torch.tensor(0.5))
    assert metrics.choose_threshold() == pytest.approx((1 / (1 + np.exp(-2)) + 1 / (1 + np.exp(-1))) / 2)


@pytest.mark.parametrize(
    ("space", "why"),
    [
        (LabelSpace(list("abc")), "single label classification with 3 labels"),
        (LabelSpace(["score"], problem_type=REGRESSION), "regression"),
        (LabelSpace(["a", "b"], has_out_of_scope=True), "queries out of scope have a threshold of their own"),
        (LabelSpace(["a", "b"], domains={"x": [0]}), "this data has intents"),
    ],
)
def test_labels_without_such_a_threshold_are_refused(space: LabelSpace, why: str) -> None:
    with pytest.raises(ConfigurationError, match="decision_threshold is for two labels, or several labels") as caught:
        classification_metrics(space, has_threshold=True)
    assert why in str(caught.value)
    assert "set it to null" in str(caught.value)
