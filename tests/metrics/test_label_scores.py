"""Precision, recall, F1 and support of each label are scikit-learn's, where they are defined."""

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from lora_lightning.metrics import MULTI_LABEL, REGRESSION, ClassificationMetrics, IntentMetrics, LabelSpace
from lora_lightning.metrics.label_scores import LabelScore, label_scores, worst_first

NAMES = ["a", "b", "c", "d", "e"]


def scores_of(metrics: ClassificationMetrics, logits: torch.Tensor, target: torch.Tensor) -> list[LabelScore]:
    for rows in (slice(0, 7), slice(7, None)):
        metrics.update(logits[rows], target[rows], torch.tensor(0.5))
    counts = metrics.label_counts()
    assert counts is not None
    assert counts.dtype == np.int64
    return label_scores(NAMES, counts)


def compare(found: list[LabelScore], target: np.ndarray, said: np.ndarray) -> None:
    expected = precision_recall_fscore_support(target, said, labels=range(5), zero_division=np.nan)
    for number, score in enumerate(found):
        values = [float("nan") if value is None else value for value in score[1:4]]
        assert score.label == NAMES[number]
        assert values == pytest.approx([column[number] for column in expected[:3]], nan_ok=True)
        assert score.support == expected[3][number]


def test_scores_of_one_label_a_text() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(40, 5, generator=generator), torch.randint(0, 4, (40,), generator=generator)
    logits[:, 2] = -9  # never predicted; the last label is in no row
    found = scores_of(ClassificationMetrics(LabelSpace(NAMES)), logits, target)
    compare(found, target.numpy(), logits.argmax(dim=1).numpy())
    assert (found[2].precision, found[2].recall, found[2].f1) == (None, 0, 0)
    assert found[4].recall is None


def test_scores_of_several_labels_a_text() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(40, 5, generator=generator), torch.rand(40, 5, generator=generator) < 0.3
    logits[:, 2] = -9
    target[:, 4] = False
    found = scores_of(ClassificationMetrics(LabelSpace(NAMES, problem_type=MULTI_LABEL)), logits, target.float())
    compare(found, target.numpy(), (logits >= 0).numpy())


def test_rows_without_a_class_are_of_no_label() -> None:
    metrics = IntentMetrics(LabelSpace(NAMES, None, has_out_of_scope=True))
    found = scores_of(metrics, torch.eye(5).repeat(2, 1), torch.tensor([0, 1, 2, 3, -1, -1, 1, 2, 3, 4]))
    assert [score.support for score in found] == [1, 2, 2, 2, 1]
    assert [score.f1 for score in found] == [1.0] * 5


def test_a_label_that_is_neither_predicted_nor_there_has_no_score() -> None:
    nothing, wrong = label_scores(["a", "b"], np.array([[0, 0, 0], [0, 3, 2]]))
    assert nothing == ("a", None, None, None, 0)
    assert wrong == ("b", 0, 0, 0, 2)


def test_numbers_have_no_labels() -> None:
    assert ClassificationMetrics(LabelSpace(["score"], problem_type=REGRESSION)).label_counts() is None


def test_the_worst_label_is_the_one_with_the_lowest_f1_and_the_most_rows() -> None:
    counts = np.array([[5, 9, 5], [0, 1, 3], [0, 0, 0], [0, 0, 8], [4, 4, 4]])
    assert [score.label for score in worst_first(label_scores(NAMES, counts))] == ["d", "b", "a", "e"]
