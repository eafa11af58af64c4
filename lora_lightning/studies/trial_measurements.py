"""What a trial measures beside its metrics: one row per test example, its peak memory and the time of a step."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from lora_lightning.errors import DataError
from lora_lightning.runs.files import atomic_file, save_text, write_error
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.runs.resources import peak_memory_since_reset, reset_peak_memory, synchronized_time
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.base import EVALUATED
from lora_lightning.tasks.outcome_rows import INDEX, batch_rows, split_rows

OUTCOMES, COSTS = "test_outcomes.parquet", "costs.json"
SPLIT = "split"


class TestOutcomes(Callback):
    """Writes one row per test example into the run folder, in the order of the data.

    The columns are `split`, `index` (row number), `score` (log-likelihood, or minus the squared error) and `weight` (0
    for a row without a label); for classification also `label`, `prediction`, and for data with out-of-scope queries
    `out_of_scope_score` and `is_out_of_scope`. For language models a row is a document, `score` is its mean
    log-likelihood per token, `weight` the number of its tokens with a label, and `hits` how many of them are the most
    likely token. For question answering a row is a question, with `exact` and `f1` at the threshold that validation
    chose, `has_answer`, and the mean log-likelihood of its windows as `score`, whose number is its `weight`.
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
        """Keeps what each example of the batch contributes to the metrics."""
        del batch_idx
        task = cast("AdaptationTask", pl_module)
        split = trainer.datamodule.split_names("test")[dataloader_idx]  # type: ignore[attr-defined]
        with trainer.precision_plugin.test_step_context():
            rows = batch_rows(task, batch, outputs[EVALUATED])
        self._batches.setdefault(split, []).append(rows)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        task, data = cast("AdaptationTask", pl_module), trainer.datamodule  # type: ignore[attr-defined]
        found = {split: split_rows(task, data, split, batches) for split, batches in self._batches.items()}
        if any(found.values()) and trainer.is_global_zero:
            write_outcomes(run_folder_of(trainer) / OUTCOMES, found)


def write_outcomes(path: Path, rows: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes the rows of all test splits as Parquet, each split in the order of its data.

    Args:
        path: The file.
        rows: Columns of shape (examples,) by split, in any order of rows.

    Raises:
        TrainingError: If the file cannot be written.
    """
    import pyarrow as pa  # noqa: PLC0415  # half a second
    from pyarrow import parquet  # noqa: PLC0415

    tables = []
    for split, columns in rows.items():
        order = columns[INDEX].argsort(stable=True)
        ordered = {name: column[order].numpy() for name, column in columns.items()}
        tables.append(pa.table({SPLIT: [split] * len(order), **ordered}))
    try:
        with atomic_file(path) as file:
            parquet.write_table(pa.concat_tables(tables), file)
    except OSError as error:
        raise write_error(path, error) from error


def read_outcome_rows(path: Path, split: str) -> dict[str, NDArray[Any]]:
    """Reads what a trial wrote for each example of a test split.

    Args:
        path: The Parquet file.
        split: The test split.

    Returns:
        Columns of shape (examples,); empty if there is no file.

    Raises:
        DataError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    from pyarrow import compute, parquet  # noqa: PLC0415  # half a second

    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        msg = f"{path} is damaged ({str(error).splitlines()[0]}); delete the run folder, and run the study again"
        raise DataError(msg) from error
    rows = table.filter(compute.equal(table["split"], split))
    return {name: rows[name].to_numpy() for name in rows.column_names if name != "split"}


class TrialCosts(Callback):
    """Writes peak memory, the seconds of an optimizer step and those of the training into the run folder.

    Args:
        is_alone: Returns whether no other run of the study is training or has been since a time, in seconds since 1970;
            otherwise times mean nothing and are left out.
    """

    def __init__(self, is_alone: Callable[[float], bool]) -> None:
        self.is_alone = is_alone
        self._was_alone, self._start = False, 0.0
        self._train_start: float | None = None  # of a training that is not resumed
        self._seconds = 0.0
        self._since: float | None = None
        self._steps = 0
        self._is_reset = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resets the high-water mark of memory, which earlier trials of this process may have raised."""
        del pl_module
        self._start = time.time()
        self._was_alone = self.is_alone(self._start)
        self._is_reset = reset_peak_memory(trainer.strategy.root_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the training, unless it is resumed."""
        del pl_module
        self._train_start = None if trainer.global_step else synchronized_time(trainer.strategy.root_device)

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
        if self._was_alone and self.is_alone(self._start):
            if self._steps:
                costs["seconds_per_step"] = self._seconds / self._steps * trainer.accumulate_grad_batches
            if self._train_start is not None:
                costs["wall_seconds"] = synchronized_time(trainer.strategy.root_device) - self._train_start
        path = run_folder_of(trainer) / COSTS
        save_text(path, json.dumps(costs) + "\n")
