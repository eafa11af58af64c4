"""What a user would get from a model for each validation example, with the model's own threshold."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_lightning.analysis.behavior import Decisions
from lora_lightning.metrics.label_space import MULTI_LABEL, OUT_OF_SCOPE_TARGET, REGRESSION
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.question_answering import QuestionAnsweringTask
from lora_lightning.tasks.sequence_classification import SequenceClassificationTask

EXACT = "exact"
REJECTED = -1  # of a query that is out of scope, among decisions and labels
NO_DECISIONS = "no decisions are counted: "


def decisions_in_words(task: AdaptationTask) -> str:
    """Says what the decisions of a task are.

    Args:
        task: Knows its labels.

    Returns:
        What one is about, or why there are none, to stand in a sentence.
    """
    if isinstance(task, QuestionAnsweringTask):
        return "decisions are the answers to questions, or that there is none, with each run's own threshold"
    if isinstance(task, CausalLanguageModelingTask):
        return f"{NO_DECISIONS}a language model makes none beside the next token, which has its own rows"
    if not isinstance(task, SequenceClassificationTask) or task.labels.problem_type == REGRESSION:
        return f"{NO_DECISIONS}this task predicts no labels"
    if task.labels.problem_type == MULTI_LABEL:
        chosen = "one half" if task.threshold_name is None else "each run's own threshold"
        return f"decisions are whether a label applies to a text, for every label of every text, from {chosen} on"
    if task.labels.has_out_of_scope:
        return (
            "decisions are the class of a text or that it is rejected as out of scope, with the threshold that each "
            "run's own validation chose"
        )
    chosen = "" if task.threshold_name is None else ", with each run's own threshold"
    return f"decisions are the class of a text{chosen}"


class DecisionRecorder:
    """Keeps what a user would get; `watch` is for `SplitExamples.measure`.

    Args:
        task: The task.
        split: Name of the split.
        batches: Their number: answers to questions are known after the last one.
    """

    def __init__(self, task: AdaptationTask, split: str, batches: int) -> None:
        self.task, self.split, self.batches = task, split, batches
        self._made: list[Tensor] = []
        self._right: list[Tensor] = []
        self._answers: Decisions | None = None
        self._count = 0

    def watch(self, batch: dict[str, Tensor], found: Any) -> None:
        """Takes a batch, and what the task found for it."""
        self._count += 1
        task = self.task
        if isinstance(task, QuestionAnsweringTask):
            if self._count == self.batches:
                right = task.question_rows(self.split)[EXACT] == 1
                self._answers = Decisions(np.array(task.answers(self.split), dtype=np.str_), right)
        elif isinstance(task, SequenceClassificationTask) and task.labels.problem_type != REGRESSION:
            made, labels = task.outputs(batch, found).decisions, _labels(task, batch)
            known = labels != OUT_OF_SCOPE_TARGET
            if task.labels.has_out_of_scope:  # whose queries are rejected rightly
                known = torch.ones_like(known)
            self._made.append(made[known].cpu())
            self._right.append((made == labels)[known].cpu())

    @property
    def decisions(self) -> Decisions | None:
        """All of them; `None` if the task makes none."""
        if not self._made:
            return self._answers
        return Decisions(torch.cat(self._made).numpy(), torch.cat(self._right).numpy())


def _labels(task: SequenceClassificationTask, batch: dict[str, Tensor]) -> Tensor:
    """What is right, in the terms of `outputs`."""
    labels, index = batch["labels"], task.labels.out_of_scope_index
    if task.labels.problem_type == MULTI_LABEL:
        return labels.long()
    return labels if index is None else labels.masked_fill(labels == index, REJECTED)
