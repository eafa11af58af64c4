"""Runs a task with one model after the other over a split, and keeps one number per example."""

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_lightning.analysis.metric_outcomes import largest_change, metric_outcomes, metrics_of_examples
from lora_lightning.analysis.metric_scale import choose_scale
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.held_out_batches import (
    Batch,
    isolated_evaluation,
    network_replaced,
    on_device,
    reset_metrics,
    some_batches,
    validation_precision,
)
from lora_lightning.tasks.next_token import IGNORED
from lora_lightning.tasks.outcome_rows import (
    DOCUMENT,
    HITS,
    INDEX,
    QUESTION,
    WEIGHT,
    batch_rows,
    split_rows,
    summed_rows,
)

SHARED = (QUESTION, DOCUMENT)  # columns of batches whose examples may take several rows
Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ChosenRows:
    """Rows of a split on which several models are compared, whatever the size of the batches of each.

    Attributes:
        batches: On the host.
        dataset: Makes a batch of any rows, by their numbers.
    """

    batches: list[Batch]
    dataset: Any


@dataclass(frozen=True)
class Measured:
    """What a model made of a split.

    Attributes:
        metrics: By name.
        rows: Columns of shape (examples,), in the order of the data.
        threshold: The task's threshold that both follow; `None` for a task without one.
    """

    metrics: dict[str, float]
    rows: Rows
    threshold: float | None = None

    def outcomes(self, metric: str) -> NDArray[np.float64] | None:
        """One number per example whose mean is the metric (its logarithm for a perplexity); `None` if there is none."""
        value = self.stored_value(metric)
        return metric_outcomes(metric, self.rows, value) if math.isfinite(value) else None

    def stored_value(self, metric: str) -> float:
        """The metric itself (its logarithm for a perplexity); NaN if it is undefined on these examples."""
        value = self.metrics.get(metric, math.nan)
        return choose_scale(metric, [value]).stored_value(value) if math.isfinite(value) else value

    def largest_change(self, metric: str) -> float | None:
        """By how much one example can change the metric at most, times their number; `None` without a limit."""
        return largest_change(metric, self.rows)

    @property
    def examples(self) -> int:
        """Their number."""
        return len(next(iter(self.rows.values()), []))

    @property
    def comparable_metrics(self) -> list[str]:
        """The metrics that are means over examples, or are linearized as such, and defined on these."""
        known = metrics_of_examples(self.rows)
        return [name for name in self.metrics if name in known and self.outcomes(name) is not None]


class SplitExamples:
    """All examples of a split.

    Args:
        task: The task; its own model does not matter.
        trainer: Has validated it.
        split: Such as `test` or `val_matched`; of `val`, the first of several validation splits.
    """

    def __init__(self, task: AdaptationTask, trainer: Trainer, split: str) -> None:
        self.task, self.trainer = task, trainer
        self.datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        kind = split.partition("_")[0]
        if kind == "test":
            self.datamodule.setup("test")
            task.setup("test")
            task.to(trainer.strategy.root_device)
        names: list[str] = self.datamodule.split_names(kind)
        self.split = split if split in names else names[0]
        loaders = self.datamodule.test_dataloader() if kind == "test" else self.datamodule.val_dataloader()
        if isinstance(loaders, list):
            loaders = loaders[names.index(self.split)]
        self.dataset: Any = loaders.dataset
        self.batches: list[Batch] = some_batches(loaders, sys.maxsize)

    @property
    def row_count(self) -> int:
        """Rows of all batches."""
        return sum(len(next(iter(batch.values()))) for batch in self.batches)

    def spread(self, rows: int) -> "SplitExamples":
        """Some examples of the split, evenly spread over its lengths, for what needs no verdict.

        Args:
            rows: How many to keep, of questions and documents about.

        Returns:
            The split itself if it has no more. Of a question or a document, which may take several rows, all are kept
            or none counts, and one at least is kept.
        """
        if self.row_count <= rows or not self.batches:
            return self
        few = copy.copy(self)
        if any(name in self.batches[0] for name in SHARED):
            few.batches = _whole_examples(self.batches, rows)
            return few
        few.batches = self._in_whole_batches(rows_of_all_lengths(self.batches, max(rows, 1)))
        return few

    def _in_whole_batches(self, kept: list[Batch]) -> list[Batch]:
        """As many rows a batch as the split has: a few rows of each of its batches would take as long as all of it."""
        if not all(INDEX in batch for batch in kept):
            return kept
        numbers = torch.cat([batch[INDEX] for batch in kept]).tolist()
        size = max(len(batch[INDEX]) for batch in self.batches)
        return [self.dataset[numbers[start : start + size]] for start in range(0, len(numbers), size)]

    @property
    def chosen(self) -> ChosenRows:
        """The rows, for the same split as other runs have it."""
        return ChosenRows(self.batches, self.dataset)

    def has_rows(self, chosen: ChosenRows) -> bool:
        """Whether this run's data has the rows that were chosen in another run's: the same tokens, labels and numbers.

        Args:
            chosen: Of the same split; batches without `index` have to be those that this object has.
        """
        if not all(INDEX in batch for batch in (*chosen.batches, *self.batches)):
            return len(self.batches) == len(chosen.batches) and all(map(_is_same, self.batches, chosen.batches))
        numbers = [batch[INDEX].tolist() for batch in chosen.batches]
        if max((number for rows in numbers for number in rows), default=-1) >= len(self.dataset):
            return False
        return all(_is_same(self.dataset[rows], chosen.dataset[rows]) for rows in numbers)

    def at(self, chosen: ChosenRows) -> "SplitExamples":
        """Other rows of the split, in their batches.

        Args:
            chosen: For which `has_rows` is true.
        """
        found = copy.copy(self)
        found.batches = chosen.batches
        return found

    def measure(
        self,
        network: nn.Module,
        watch: Callable[[Batch, Any], None] = lambda *_: None,
        *,
        threshold: float | None = None,
        chooses_threshold: bool = False,
    ) -> Measured:
        """Runs a model over the split.

        Args:
            network: In evaluation mode, on the task's device.
            watch: Is called with each batch, on the device, and what the task's `evaluate` found for it.
            threshold: What validation chose for this model; `None` for the task's own.
            chooses_threshold: Chooses it on this split, as validation does.

        Returns:
            Its metrics and its examples.
        """
        task, former = self.task, self.task.threshold
        with isolated_evaluation(task), network_replaced(task, network):
            reset_metrics(task.metrics)
            rows = []
            for batch in self.batches:
                moved = on_device(self.trainer, batch)
                with validation_precision(self.trainer):
                    found = task.evaluate(moved)
                    rows.append(batch_rows(task, moved, found))
                    task.add_to_metrics(self.split, moved, summed_rows(task, rows[-1]) or found)
                    watch(moved, found)
            if chooses_threshold:
                task.choose_threshold(self.split)
            task.set_threshold(threshold)
            columns = split_rows(task, self.datamodule, self.split, rows)
            metrics, threshold = task.metric_values(self.split), task.threshold
        task.set_threshold(former)
        order = columns[INDEX].argsort(stable=True) if columns else None
        examples = labeled_documents({name: column[order].numpy() for name, column in columns.items()})
        return Measured(metrics, examples, threshold)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rows of the split."""
        return str(self.datamodule.fingerprint[self.split])

    def in_words(self, examples: int) -> str:
        """What the examples are, such as `val of Clinc150DataModule, 3,100 examples`."""
        return f"{self.split} of {type(self.datamodule).__name__}, {examples:,} examples"


def rows_of_all_lengths(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Some rows of batches, evenly spread over all of them: the first batches have the longest rows.

    Args:
        batches: Each with tensors whose first axis is its rows.
        count: How many rows to keep at most.

    Returns:
        The batches with these rows; those without one are left out.
    """
    owners = [(number, row) for number, batch in enumerate(batches) for row in range(len(next(iter(batch.values()))))]
    kept: dict[int, list[int]] = {}
    for place in spread_places(len(owners), count):
        number, row = owners[place]
        kept.setdefault(number, []).append(row)
    return [{name: tensor[rows] for name, tensor in batches[number].items()} for number, rows in kept.items()]


def spread_places(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spread, ascending."""
    few = min(total, count)
    return [(2 * number + 1) * total // (2 * few) for number in range(few)]


def _is_same(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _whole_examples(batches: Sequence[Batch], least: int) -> list[Batch]:
    """Keeps rows of whole questions or documents, evenly spread over the split, until there are at least so many."""
    rows_of: dict[int, set[tuple[int, int]]] = {}
    for number, batch in enumerate(batches):
        for row, owner in _owners(batch):
            rows_of.setdefault(owner, set()).add((number, row))
    examples = list(rows_of.values())
    if not examples:
        return list(batches)
    count = max(1, math.ceil(least * len(examples) / sum(map(len, examples))))
    kept: set[tuple[int, int]] = set()
    while len(kept) < least or not kept:
        places = ((np.arange(count) + 0.5) * len(examples) / count).astype(int)
        kept, count = set().union(*(examples[place] for place in places)), count + 1
        if len(places) == len(examples):
            break
    whole = torch.tensor([owner for owner, rows in rows_of.items() if rows <= kept])
    found = []
    for number, batch in enumerate(batches):
        rows = [row for row in range(len(next(iter(batch.values())))) if (number, row) in kept]
        if rows:
            found.append(_only_of({name: tensor[rows] for name, tensor in batch.items()}, whole))
    return found


def _owners(batch: Batch) -> list[tuple[int, int]]:
    """Each row with a question or document that has labels in it."""
    if DOCUMENT not in batch:
        return list(enumerate(batch[QUESTION].tolist()))
    is_label = batch["labels"] != IGNORED
    pairs = zip(is_label.nonzero()[:, 0].tolist(), batch[DOCUMENT][is_label].tolist(), strict=True)
    return sorted(set(pairs))


def _only_of(batch: Batch, documents: Tensor) -> Batch:
    """Leaves out the labels of documents of which other rows are missing; they share a row with a whole one."""
    if DOCUMENT not in batch:
        return batch
    is_whole = torch.isin(batch[DOCUMENT], documents.to(batch[DOCUMENT].dtype))
    return {**batch, "labels": batch["labels"].masked_fill(~is_whole, IGNORED)}


def labeled_documents(rows: Rows) -> Rows:
    """Leaves out documents without labels, which show nothing and must not count as examples.

    Args:
        rows: Columns of examples of any kind.

    Returns:
        Those of documents that have labels; others as they are.
    """
    if HITS not in rows:
        return rows
    return {name: column[rows[WEIGHT] > 0] for name, column in rows.items()}
