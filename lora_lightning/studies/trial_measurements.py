"""What a trial measures beside its metrics: one row per test example, its peak memory and the time of a step."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lora_lightning.errors import DataError
from lora_lightning.metrics.label_space import OUT_OF_SCOPE_TARGET
from lora_lightning.metrics.out_of_scope import out_of_scope_score
from lora_lightning.runs.files import atomic_file, write_error, write_text_atomically
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.runs.resources import peak_memory_since_reset, reset_peak_memory, synchronized_time
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.sequence_classification import SequenceClassificationTask

OUTCOMES, COSTS = "test_outcomes.parquet", "costs.json"
SPLIT, INDEX = "split", "index"


class TestOutcomes(Callback):
    """Writes one row per test example into the run folder, in the order of the data.

    The columns are `split`, `index` (row number), `score` (log-likelihood, or minus the squared error) and `weight` (0
    for a row without a label); for classification also `label`, `prediction`, and for data with out-of-scope queries
    `out_of_scope_score` and `is_out_of_scope`.
    """

    __test__ = False  # no test of pytest's

    def __init__(self) -> None:
        self._batches: dict[str, list[dict[str, Tensor]]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier test."""
        del trainer, pl_module
        self._batches = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluates the batch once more, and keeps what each example contributes to the metrics."""
        del outputs, batch_idx
        task = cast("AdaptationTask", pl_module)
        split = trainer.datamodule.split_names("test")[dataloader_idx]  # type: ignore[attr-defined]
        with trainer.precision_plugin.test_step_context():
            rows = example_rows(task, batch)
        if rows:
            self._batches.setdefault(split, []).append({name: column.cpu() for name, column in rows.items()})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        del pl_module
        if self._batches and trainer.is_global_zero:
            write_outcomes(run_folder_of(trainer) / OUTCOMES, self._batches)


def example_rows(task: AdaptationTask, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns what each example of a batch contributes to the metrics.

    Args:
        task: The task, in evaluation mode.
        batch: A batch with labels.

    Returns:
        Columns of shape (examples,); empty if the rows of the batch are not the test examples, as for windows of a
        text or sampled tokens.
    """
    found = task.evaluate(batch)
    if isinstance(task, SequenceClassificationTask):
        return _classification_rows(task, batch, found[0])
    outputs = task.outputs(batch, found)
    if outputs.distribution != "number" or outputs.scores is None:
        return {}
    return {INDEX: batch["index"], "score": outputs.scores.float(), "weight": torch.ones_like(outputs.scores)}


def _classification_rows(
    task: SequenceClassificationTask, batch: dict[str, Tensor], logits: Tensor
) -> dict[str, Tensor]:
    outputs, space, labels = task.outputs(batch, (logits, logits.sum())), task.labels, batch["labels"]
    scores, weights = cast("Tensor", outputs.scores), cast("Tensor", outputs.weights)
    rows = {INDEX: batch["index"], "score": scores.float(), "weight": weights.float()}
    if outputs.distribution == "bernoulli":
        return rows | {"exact": (outputs.decisions == labels).all(dim=-1)}
    if outputs.distribution == "number":
        return rows | {"label": labels.float(), "prediction": logits.float().squeeze(-1)}
    rows |= {"label": labels, "prediction": logits.float().argmax(dim=-1)}
    if space.has_out_of_scope:
        index = space.out_of_scope_index
        rows["is_out_of_scope"] = labels == (OUT_OF_SCOPE_TARGET if index is None else index)
        rows["out_of_scope_score"] = out_of_scope_score(logits.float(), index)
    return rows


def write_outcomes(path: Path, batches: Mapping[str, list[dict[str, Tensor]]]) -> None:
    """Writes the rows of all test splits as Parquet, each split in the order of its data.

    Args:
        path: The file.
        batches: Columns of batches, by split.

    Raises:
        TrainingError: If the file cannot be written.
    """
    import pyarrow as pa  # noqa: PLC0415  # half a second
    from pyarrow import parquet  # noqa: PLC0415

    tables = []
    for split, parts in batches.items():
        columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        order = np.argsort(columns[INDEX], kind="stable")
        ordered = {name: column[order] for name, column in columns.items()}
        tables.append(pa.table({SPLIT: [split] * len(order), **ordered}))
    try:
        with atomic_file(path) as file:
            parquet.write_table(pa.concat_tables(tables), file)
    except OSError as error:
        raise write_error(path, error) from error


class TrialCosts(Callback):
    """Writes the peak memory of training and the seconds of an optimizer step into the run folder.

    Args:
        is_alone: Returns whether no other run of the study is training; otherwise times mean nothing and are left out.
    """

    def __init__(self, is_alone: Callable[[], bool]) -> None:
        self.is_alone = is_alone
        self._was_alone = False
        self._seconds = 0.0
        self._since: float | None = None
        self._steps = 0
        self._is_reset = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resets the high-water mark of memory, which earlier trials of this process may have raised."""
        del pl_module
        self._was_alone = self.is_alone()
        self._is_reset = reset_peak_memory(trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock; the first batch of an epoch is not timed."""
        del pl_module, batch
        self._since = synchronized_time(trainer.strategy.root_device) if batch_idx else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock."""
        del pl_module, outputs, batch, batch_idx
        if self._since is not None:
            self._seconds += synchronized_time(trainer.strategy.root_device) - self._since
            self._steps += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        del pl_module
        costs: dict[str, float] = {}
        if self._is_reset:
            costs["peak_memory_bytes"] = float(peak_memory_since_reset(trainer.strategy.root_device))
        if self._steps and self._was_alone and self.is_alone():
            costs["seconds_per_step"] = self._seconds / self._steps * trainer.accumulate_grad_batches
        path = run_folder_of(trainer) / COSTS
        try:
            write_text_atomically(path, json.dumps(costs) + "\n")
        except OSError as error:
            raise write_error(path, error) from error


def read_costs(run: Path) -> dict[str, float]:
    """Reads what a trial cost.

    Args:
        run: The run folder.

    Returns:
        Numbers by name; empty if there is no file.

    Raises:
        DataError: If the file is damaged.
    """
    path = run / COSTS
    if not path.is_file():
        return {}
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        msg = f"{path} is damaged ({error}); delete the run folder, and run the study again"
        raise DataError(msg) from error
