"""Decisions are what a user would get: with thresholds and rejections, of every kind of task that makes some."""

from typing import Any

import numpy as np
import pytest
import torch

from lora_lightning.analysis.behavior import Decisions, count_flips
from lora_lightning.diagnosis.decisions import DecisionRecorder, decisions_in_words
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, LabelSpace
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [0.2, 0.1, 0.3], [1.0, 0.0, 0.9]])


def decisions(space: LabelSpace, labels: Any, threshold: float | None = None, **options: Any) -> Decisions | None:
    task = SequenceClassificationTask("none", lora=None, label_space=space, **options)
    if threshold is not None:
        task.set_threshold(threshold)
    recorder = DecisionRecorder(task, "val", 2)
    for half in (slice(0, 2), slice(2, 4)):
        recorder.watch({"labels": torch.tensor(labels)[half]}, (LOGITS[half], torch.tensor(0.0)))
    return recorder.decisions


@pytest.mark.parametrize(("index", "outside"), [(2, 2), (None, -1)], ids=["with a class", "without a class"])
def test_a_query_out_of_scope_is_decided_by_the_threshold_of_each_run(index: int | None, outside: int) -> None:
    space = LabelSpace(["a", "b", "c"], out_of_scope_index=index, has_out_of_scope=True)
    labels = [0, 1, outside, outside]
    strict, loose = (decisions(space, labels, threshold) for threshold in (1e-9, 1.0))
    assert strict is not None
    assert loose is not None
    assert strict.made.tolist() == [-1] * 4
    assert strict.are_right.tolist() == [False, False, True, True]
    assert loose.made.min() >= 0
    assert loose.are_right.tolist() == [True, True, False, False]
    found = count_flips(loose, strict)
    assert (found.examples, found.same, found.lost, found.gained, found.other) == (4, 0, 2, 2, 0)


def test_a_text_without_a_class_counts_only_where_it_can_be_rejected() -> None:
    found = decisions(LabelSpace(["a", "b", "c"]), [0, 0, -1, 2])
    assert found is not None
    assert found.made.tolist() == [0, 1, 0]
    assert found.are_right.tolist() == [True, False, False]


def test_each_label_of_a_text_is_a_decision_with_the_run_s_threshold() -> None:
    space = LabelSpace(["a", "b", "c"], problem_type=MULTI_LABEL)
    labels = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=np.float32)
    for threshold in (None, 0.7):
        options = {} if threshold is None else {"decision_threshold": "best_f1"}
        found = decisions(space, labels, threshold, **options)
        assert found is not None
        made = LOGITS.sigmoid().numpy() >= (threshold or 0.5)
        assert found.made.tolist() == made.astype(int).flatten().tolist()
        assert found.are_right.tolist() == (made == labels).flatten().tolist()


class Stub(QuestionAnsweringTask):
    """Has answered two questions after its last batch."""

    def question_rows(self, split: str) -> dict[str, Any]:
        assert split == "val"
        return {"exact": np.array([1.0, 0.0])}

    def answers(self, split: str) -> list[str]:
        assert split == "val"
        return ["Paris", ""]


def test_answers_are_decisions_after_the_last_batch() -> None:
    recorder = DecisionRecorder(Stub.__new__(Stub), "val", 2)
    recorder.watch({}, None)
    assert recorder.decisions is None
    recorder.watch({}, None)
    found = recorder.decisions
    assert found is not None
    assert (found.made.tolist(), found.are_right.tolist()) == (["Paris", ""], [True, False])


def test_a_task_without_decisions_says_so() -> None:
    assert decisions(LabelSpace(["x"], problem_type=REGRESSION), [0.5] * 4) is None
    number = SequenceClassificationTask("none", lora=None, label_space=LabelSpace(["x"], problem_type=REGRESSION))
    assert decisions_in_words(number) == "no decisions are counted: this task predicts no labels"
    text = CausalLanguageModelingTask.__new__(CausalLanguageModelingTask)
    assert decisions_in_words(text).startswith("no decisions are counted: a language model makes none")
    recorder = DecisionRecorder(text, "val", 1)
    recorder.watch({}, None)
    assert recorder.decisions is None
    for task, said in (
        (Stub.__new__(Stub), "the answers to questions"),
        (SequenceClassificationTask("none", lora=None, label_space=LabelSpace(["a"])), "are the class of a text"),
        (
            SequenceClassificationTask("none", lora=None, label_space=LabelSpace(["a"], has_out_of_scope=True)),
            "or that it is rejected as out of scope",
        ),
        (
            SequenceClassificationTask("none", lora=None, label_space=LabelSpace(["a"], problem_type=MULTI_LABEL)),
            "from one half on",
        ),
    ):
        assert said in decisions_in_words(task)
