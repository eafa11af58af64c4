"""Runs a task with one model after the other over a split, and keeps one number per example."""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning import Trainer
from numpy.typing import NDArray
from torch import nn

from lora_lightning.analysis.metric_outcomes import ANSWER_OUTCOMES, OUTCOMES, largest_change, metric_outcomes
from lora_lightning.analysis.metric_scale import choose_scale
from lora_lightning.errors import ConfigurationError, suggest_names
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
from lora_lightning.tasks.outcome_rows import HITS, INDEX, WEIGHT, batch_rows, split_rows

Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Measured:
    """What a model made of a split.

    Attributes:
        metrics: By name.
        rows: Columns of shape (examples,), in the order of the data.
    """

    metrics: dict[str, float]
    rows: Rows

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
        """The metrics that are means over examples, or are linearized as such."""
        known = OUTCOMES.keys() | ANSWER_OUTCOMES.keys()
        return [name for name in self.metrics if name in known and self.outcomes(name) is not None]


class SplitExamples:
    """All examples of a split.

    Args:
        task: The task; its own model does not matter.
        trainer: Has validated it.
        kind: `val` or `test`; of several splits of the kind the first.
    """

    def __init__(self, task: AdaptationTask, trainer: Trainer, kind: str) -> None:
        self.task, self.trainer = task, trainer
        self.datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if kind == "test":
            self.datamodule.setup("test")
            task.setup("test")
            task.to(trainer.strategy.root_device)
            loaders = self.datamodule.test_dataloader()
        else:
            loaders = self.datamodule.val_dataloader()
        self.split: str = self.datamodule.split_names(kind)[0]
        self.batches: list[Batch] = some_batches(loaders, sys.maxsize)

    def spread(self, rows: int) -> "SplitExamples":
        """Some batches of the split, evenly spread, for what needs no verdict.

        Args:
            rows: About how many to keep.

        Returns:
            The split itself if it has no more.
        """
        total = sum(len(next(iter(batch.values()))) for batch in self.batches)
        if total <= rows:
            return self
        few = copy.copy(self)
        count = max(1, len(self.batches) * rows // total)
        places = np.linspace(0, len(self.batches) - 1, count).round().astype(int)
        few.batches = [self.batches[place] for place in places]
        return few

    def measure(self, network: nn.Module, watch: Callable[[Batch, Any], None] = lambda *_: None) -> Measured:
        """Runs a model over the split.

        Args:
            network: In evaluation mode, on the task's device.
            watch: Is called with each batch, on the device, and what the task's `evaluate` found for it.

        Returns:
            Its metrics and its examples.
        """
        task = self.task
        with isolated_evaluation(task), network_replaced(task, network):
            reset_metrics(task.metrics)
            rows = []
            for batch in self.batches:
                moved = on_device(self.trainer, batch)
                with validation_precision(self.trainer):
                    found = task.evaluate(moved)
                    task.add_to_metrics(self.split, moved, found)
                    rows.append(batch_rows(task, moved, found))
                    watch(moved, found)
            columns = split_rows(task, self.datamodule, self.split, rows)
            metrics = task.metric_values(self.split)
        order = columns[INDEX].argsort(stable=True) if columns else None
        return Measured(metrics, labeled_documents({name: column[order].numpy() for name, column in columns.items()}))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rows of the split."""
        return str(self.datamodule.fingerprint[self.split])

    def in_words(self, examples: int) -> str:
        """What the examples are, such as `val of Clinc150DataModule, 3,100 examples`."""
        return f"{self.split} of {type(self.datamodule).__name__}, {examples:,} examples"


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


def choose_compared_metric(found: Measured, wanted: str | None, monitor: str | None) -> str:
    """Chooses the metric that decides.

    Args:
        found: Of the full adapter.
        wanted: The user's; `None` for the one that chose the run's best checkpoint.
        monitor: That one, with its split; `None` if unknown.

    Returns:
        Its name, without a split.

    Raises:
        ConfigurationError: If it has no numbers per example.
    """
    name = (wanted or monitor or "").rpartition("/")[2] if wanted is None else wanted.removeprefix("val/")
    comparable = found.comparable_metrics
    if wanted is None and name == "loss" and "perplexity" in comparable:
        return "perplexity"  # the same, with a usual margin
    if name in comparable:
        return name
    if not comparable:
        msg = "this data has no metric with numbers per example, so ranks cannot be compared; choose other data."
        raise ConfigurationError(msg)
    if wanted is None:
        msg = (
            f"the run's best checkpoint was chosen by {monitor or 'no metric'}, which has no numbers per example to "
            f"compare; give --metric, one of {', '.join(comparable)}."
        )
        raise ConfigurationError(msg)
    problem = "has no numbers per example to compare" if name in found.metrics else "is unknown"
    msg = f"--metric {name!r} {problem}; {suggest_names(name, comparable)}"
    raise ConfigurationError(msg)
