"""The logits of a model's predictions with what is right, for a limited number of rows of a split."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_lightning.analysis.behavior import UNLABELED, PredictionChanges, compare_predictions
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.next_token import IGNORED, spread_positions
from lora_lightning.tasks.outcome_rows import DOCUMENT, QUESTION
from lora_lightning.tasks.sequence_classification import SequenceClassificationTask

TOKENS = 1024  # of a language model's texts, whose logits are compared; 200 MB with 49,152 tokens in the vocabulary
CATEGORICAL, BERNOULLI = "categorical", "bernoulli"
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for a batch.

    Attributes:
        logits: (rows, choices), floating dtype, on the CPU.
        labels: (rows,), int64: the choice that is right, or -100.
        examples: (rows,), int64: number of the example of each row: of the question or document if batches number
            them, since one may take several rows of several batches; otherwise counted from the first batch on.
    """

    logits: Tensor
    labels: Tensor
    examples: Tensor


class PredictionRecorder:
    """Keeps predictions, or compares them with kept ones; `watch` is for `SplitExamples.measure`.

    Args:
        task: The task.
        batches: Number of batches of the split.
        reference: What another model predicted for the same batches; `None` to keep the predictions.
    """

    def __init__(self, task: AdaptationTask, batches: int, reference: list[Predictions] | None = None) -> None:
        self.task, self.reference = task, reference
        self.each = max(1, -(-TOKENS // max(batches, 1)))
        self.kept: list[Predictions] = []
        self.changes: list[PredictionChanges] = []
        self._count = self._offset = 0

    def watch(self, batch: Batch, found: Any) -> None:
        """Takes a batch, and what the task found for it."""
        own = predictions_of(self.task, batch, found, self.each)
        rows = len(next(iter(batch.values())))
        if own is None:
            return
        if not any(name in batch for name in (QUESTION, DOCUMENT)):
            own = Predictions(own.logits, own.labels, own.examples + self._offset)
        self._offset += rows
        if self.reference is None:
            self.kept.append(own)
        else:
            other = self.reference[self._count]
            self.changes.append(compare_predictions(other.logits, own.logits, own.labels, own.examples))
        self._count += 1

    @property
    def all_changes(self) -> PredictionChanges | None:
        """The differences from the reference; `None` if the task predicts no distributions."""
        return PredictionChanges.joined(self.changes) if self.changes else None


def predictions_of(task: AdaptationTask, batch: Batch, found: Any, most: int) -> Predictions | None:
    """The predictions for a batch.

    Args:
        task: The task, in evaluation mode.
        batch: The batch.
        found: What `task.evaluate` returned for it.
        most: Rows of a language model at most, evenly spread over the labels.

    Returns:
        The predictions; `None` if the task predicts numbers.
    """
    outputs = task.outputs(batch, found)
    if outputs.distribution == BERNOULLI:  # each choice is one of two, and known
        flat = outputs.logits.float().flatten().cpu()
        logits = torch.stack([torch.zeros_like(flat), flat], dim=-1)
        examples = torch.arange(len(outputs.logits)).repeat_interleave(outputs.logits.shape[-1])
        return Predictions(logits, batch["labels"].long().flatten().cpu(), examples)
    if outputs.distribution != CATEGORICAL or not len(outputs.logits):
        return None
    logits = outputs.logits.float().cpu()
    if isinstance(task, CausalLanguageModelingTask):
        return _of_tokens(batch, logits, most)
    if isinstance(task, SequenceClassificationTask):
        labels = batch["labels"].cpu()
        return Predictions(logits, torch.where(labels < 0, UNLABELED, labels), torch.arange(len(logits)))
    # Of a question answerer: the starts of all windows, then their ends.
    labels = torch.cat([batch["start_positions"], batch["end_positions"]]).cpu()
    return Predictions(logits, labels, batch[QUESTION].repeat(2).cpu())


def _of_tokens(batch: Batch, logits: Tensor, most: int) -> Predictions:
    """Of the labels whose logits `outputs` has, an even choice."""
    is_learnt = batch["labels"] != IGNORED
    labels = batch["labels"][is_learnt].cpu()
    rows = batch[DOCUMENT][is_learnt].cpu() if DOCUMENT in batch else is_learnt.nonzero()[:, 0].cpu()
    places = spread_positions(len(labels))
    chosen = torch.linspace(0, len(places) - 1, min(most, len(places)), dtype=torch.float64).round().long()
    return Predictions(logits[chosen], labels[places][chosen], rows[places][chosen])
