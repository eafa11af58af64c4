"""The loss and the readable predictions of every kind of label."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lora_lightning.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpace
from lora_lightning.tasks import SequenceClassificationTask
from lora_lightning.tasks.classification_outputs import (
    classification_loss,
    outputs_of_logits,
    predict_labels,
    readable_prediction,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])


def rows_of(logits: torch.Tensor, space: LabelSpace, threshold: torch.Tensor | None = None) -> list[dict[str, object]]:
    columns = {name: column.tolist() for name, column in predict_labels(logits, space, threshold).items()}
    return [
        readable_prediction({name: column[row] for name, column in columns.items()}, space)
        for row in range(len(logits))
    ]


def test_one_label() -> None:
    logits = LOGITS.double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = classification_loss(LOGITS, torch.tensor([2, 1]), SINGLE_LABEL)
    assert float(loss) == pytest.approx(-np.log([probabilities[0, 2], probabilities[1, 1]]).mean(), abs=1e-6)
    smooth = classification_loss(LOGITS, torch.tensor([2, 1]), SINGLE_LABEL, label_smoothing=0.3)
    assert float(smooth) == pytest.approx(0.7 * float(loss) - 0.3 * np.log(probabilities).mean(), abs=1e-6)
    assert rows_of(LOGITS, LabelSpace(["a", "b", "c"])) == [
        {"label": "a", "score": pytest.approx(probabilities[0, 0], abs=1e-6)},
        {"label": "b", "score": pytest.approx(probabilities[1, 1], abs=1e-6)},
    ]


def test_rows_without_a_class_do_not_count() -> None:
    whole = classification_loss(LOGITS[:1], torch.tensor([2]), SINGLE_LABEL)
    assert classification_loss(LOGITS, torch.tensor([2, -1]), SINGLE_LABEL) == whole


def test_several_labels() -> None:
    target = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    probabilities = 1 / (1 + np.exp(-LOGITS.double().numpy()))
    chosen = np.where(target.numpy() == 1, probabilities, 1 - probabilities)
    assert float(classification_loss(LOGITS, target, MULTI_LABEL)) == pytest.approx(-np.log(chosen).mean(), abs=1e-6)
    rows = rows_of(LOGITS, LabelSpace(["a", "b", "c"], problem_type=MULTI_LABEL))
    assert [row["labels"] for row in rows] == [["a", "c"], ["a", "b"]]  # a half is enough
    assert rows[0]["scores"] == pytest.approx(dict(zip("abc", probabilities[0], strict=True)), abs=1e-6)


def test_a_number() -> None:
    logits, target = torch.tensor([[1.5], [-2.0]]), torch.tensor([1.0, 1.0])
    assert float(classification_loss(logits, target, REGRESSION)) == pytest.approx((0.25 + 9) / 2)
    space = LabelSpace(["score"], problem_type=REGRESSION)
    assert rows_of(logits, space) == [{"prediction": 1.5}, {"prediction": -2}]


def test_intents_are_decided_by_the_threshold() -> None:
    space = LabelSpace(["a", "b", "oos"], 2, True)
    inside, outside = rows_of(LOGITS[:, [0, 1, 2]] * torch.tensor([[1.0], [-1.0]]), space, torch.tensor(0.5))
    assert (inside["intent"], inside["decision"]) == ("a", "in_scope")
    assert (outside["intent"], outside["decision"]) == ("a", "out_of_scope")
    probabilities = np.exp([2, -1, 0.5]) / np.exp([2, -1, 0.5]).sum()
    assert inside["score"] == pytest.approx(probabilities[0], abs=1e-6)
    assert inside["out_of_scope_score"] == pytest.approx(1 - probabilities[0], abs=1e-6)


def test_half_precision_logits_lose_nothing_in_the_loss() -> None:
    half = classification_loss(LOGITS.bfloat16(), torch.tensor([2, 1]), SINGLE_LABEL)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(
        float(classification_loss(LOGITS, torch.tensor([2, 1]), SINGLE_LABEL)), rel=1e-2
    )


@pytest.mark.parametrize("out_of_scope_index", [None, 2])
def test_decisions_are_what_predict_says(out_of_scope_index: int | None) -> None:
    space = LabelSpace(["a", "b", "c"], out_of_scope_index, has_out_of_scope=True)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.1, 9.0], [0.0, 0.1, 0.05]])
    for threshold in (0.0, 0.5, 2.0):
        said = predict_labels(logits, space, torch.tensor(threshold))
        outputs = outputs_of_logits(logits, space, torch.tensor(threshold))
        expected = [
            -1 if outside else intent
            for intent, outside in zip(said["intent"].tolist(), said["is_out_of_scope"].tolist(), strict=True)
        ]
        assert outputs.decisions.tolist() == expected
        assert outputs.distribution == "categorical"
        assert outputs.logits is logits


def test_decisions_of_labels_sets_and_numbers() -> None:
    logits, nothing = torch.tensor([[2.0, -1.0], [-1.0, 0.5]]), None
    said = outputs_of_logits(logits, LabelSpace(["a", "b"]), nothing)
    assert (said.distribution, said.decisions.tolist()) == ("categorical", [0, 1])
    said = outputs_of_logits(logits, LabelSpace(["a", "b"], problem_type="multi_label_classification"), nothing)
    assert (said.distribution, said.decisions.tolist()) == ("bernoulli", [[1, 0], [0, 1]])
    said = outputs_of_logits(logits[:, :1], LabelSpace(["a"], problem_type="regression"), nothing)
    assert (said.distribution, said.decisions.tolist()) == ("number", [])


@pytest.mark.parametrize("space", [LabelSpace(["no", "yes"]), LabelSpace(["a", "b"], problem_type=MULTI_LABEL)])
@pytest.mark.parametrize("limit", [0.3, 0.9])
def test_labels_apply_from_the_threshold_and_margins_end_there(space: LabelSpace, limit: float) -> None:
    threshold = torch.tensor(limit)
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 2
    several = space.problem_type == MULTI_LABEL
    scores = logits.sigmoid() if several else logits.softmax(dim=1)[:, 1]
    outputs = outputs_of_logits(logits, space, threshold)
    assert outputs.decisions.equal((scores >= limit).long())
    assert outputs.decisions.unique().tolist() == [0, 1]
    rows = rows_of(logits, space, threshold)
    if several:
        assert [row["labels"] for row in rows] == [
            [name for name, score in zip("ab", row, strict=True) if score >= limit] for row in scores
        ]
    else:
        assert [row["label"] for row in rows] == [space.names[score >= limit] for score in scores]
        answered = torch.where(scores >= limit, scores, 1 - scores).tolist()
        assert [row["score"] for row in rows] == pytest.approx(answered, abs=1e-5)
    assert outputs.margins is not None
    towards = (1 - 2 * outputs.decisions).float() * outputs.margins  # one logit of a label, or both of the two classes
    for share, changes in ((0.99, False), (1.01, True)):
        moved = logits + share * (towards if several else torch.stack([-towards, towards], dim=1))
        decisions = outputs_of_logits(moved, space, threshold).decisions
        assert ((decisions != outputs.decisions) == changes).all()


@pytest.mark.parametrize("sanity_checking", [True, False])
def test_the_sanity_check_chooses_no_threshold(sanity_checking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(SequenceClassificationTask, "choose_threshold", lambda _, split: chosen.append(split))
    monkeypatch.setattr(SequenceClassificationTask, "_log_metrics", lambda _: None)
    trainer = SimpleNamespace(sanity_checking=sanity_checking, state=SimpleNamespace(fn=TrainerFn.FITTING))
    monkeypatch.setattr(SequenceClassificationTask, "trainer", trainer)
    task = SequenceClassificationTask("tiny")
    task.scored_splits = ["val"]
    task.on_validation_epoch_end()
    assert chosen == ([] if sanity_checking else ["val"])
