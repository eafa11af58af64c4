"""What the monitors share: when to measure, where the numbers go."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, split_layer_number
from lora_lightning.runs.files import atomic_file
from lora_lightning.runs.layout import TABLES, run_folder_of

TOTAL = "all"  # in place of a module's name
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("module", pa.string()),
        ("layer", pa.int32()),
        ("kind", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)


class Measurement(NamedTuple):
    """One number.

    Attributes:
        module: Dotted name of a layer in the pretrained model, or `all`.
        metric: What was measured, for example `effective_rank`.
        value: The number.
    """

    module: str
    metric: str
    value: float


class AdapterMonitor(Callback):
    """Base of the monitors: measures every n optimizer steps, or at each validation, and at the end of training.

    Numbers go to every logger and, tidy, to `<run folder>/adapter_metrics/<table>.parquet`: one row a number with step,
    module, layer, kind, metric, value; `pandas.read_parquet(<run folder>/adapter_metrics)` reads all monitors' tables.
    The file is complete after each validation and at the end. A run resumed in the same folder goes on in it.

    Args:
        every_n_steps: Optimizer steps between measurements; `null` measures at each validation.
    """

    table: str  # name of the Parquet file, set by each monitor
    tag: str  # first part of the loggers' names, set by each monitor

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            msg = f"{type(self).__name__}.every_n_steps is {every_n_steps}, but 1 or more, or null, is needed."
            raise ConfigurationError(msg)
        self.every_n_steps = every_n_steps
        self._parts: list[pa.Table] = []
        self._measured_at = -1
        self._saved_at: int | None = None

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Measures now; every process calls it, the main one's numbers count."""
        raise NotImplementedError

    def show(self, trainer: Trainer, board: TensorBoardLogger, measurements: list[Measurement]) -> None:
        """Adds pictures or histograms to TensorBoard; on the main process only."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes up the table of the run that is resumed in this folder; only now the step is restored."""
        del pl_module
        path = self.table_path(trainer)
        self._measured_at = 0  # nothing to see in a new adapter
        if trainer.is_global_zero and path.exists():
            old = pq.read_table(path, schema=SCHEMA)
            known = old.filter(pc.less_equal(old["step"], self._last_known(trainer)))
            self._parts = [known] if known.num_rows else []
            self._measured_at = pc.max(known["step"]).as_py() or 0
        # All processes measure, or none.
        self._measured_at = int(trainer.strategy.broadcast(self._measured_at))

    def _last_known(self, trainer: Trainer) -> int:
        """The last step whose numbers the checkpoint knows of; what was measured since is measured and logged again."""
        if trainer.ckpt_path is None:
            return -1
        return trainer.global_step if self._saved_at is None else self._saved_at

    def state_dict(self) -> dict[str, Any]:
        """The step that was measured last."""
        return {"measured_at": self._measured_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps it until training starts; older checkpoints do not have it."""
        saved_at = state_dict.get("measured_at")
        self._saved_at = None if saved_at is None else int(saved_at)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures where a step is due; batches that only accumulate gradients are no steps."""
        del outputs, batch, batch_idx
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            self.record(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures where no steps are set, and completes the file."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.every_n_steps is None:
            self.record(trainer, pl_module)
        self.write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures what training ended with, and completes the file."""
        self.record(trainer, pl_module)
        self.write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Completes the file: a run resumed from this checkpoint does not measure these steps again."""
        del pl_module, checkpoint
        self.write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what was measured."""
        del pl_module, exception
        self.write(trainer)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, unless this step is measured already, and hands the numbers on."""
        step = trainer.global_step
        if step == self._measured_at:
            return
        self._measured_at = step
        self.hand_on(trainer, step, self.measure(trainer, pl_module))

    def hand_on(self, trainer: Trainer, step: int, measurements: list[Measurement]) -> None:
        """Adds numbers to the table and shows them in every logger; on the main process only."""
        if not trainer.is_global_zero or not measurements:
            return
        self._parts.append(tidy(step, measurements))
        values = {f"{self.tag}/{m.module}/{m.metric}": m.value for m in measurements}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
            if isinstance(logger, TensorBoardLogger):
                self.show(trainer, logger, measurements)

    def table_path(self, trainer: Trainer) -> Path:
        """Where the numbers land."""
        return run_folder_of(trainer) / TABLES / f"{self.table}.parquet"

    def write(self, trainer: Trainer) -> None:
        """Writes the file anew, whole or not at all."""
        if not trainer.is_global_zero or not self._parts or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.table_path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._parts = [pa.concat_tables(self._parts).combine_chunks()]
        with atomic_file(path) as file:
            pq.write_table(self._parts[0], file)


def warn_without_adapters(monitor: Callback, pl_module: LightningModule) -> None:
    """Says that a monitor of adapters has nothing to measure.

    Args:
        monitor: Which one.
        pl_module: The task, its model built.
    """
    if not adapted_layers(pl_module):
        name = type(monitor).__name__
        rank_zero_warn(f"{name} measures nothing: this model trains without adapters (model.lora is null).")


def tidy(step: int, measurements: Iterable[Measurement]) -> pa.Table:
    """Numbers as rows.

    Args:
        step: Optimizer steps so far.
        measurements: The numbers.

    Returns:
        One row a number: step, module, layer (null outside numbered layers), kind, metric, value.
    """
    rows = []
    for module, metric, value in measurements:
        layer, kind = split_layer_number(module)
        rows.append({"step": step, "module": module, "layer": layer, "kind": kind, "metric": metric, "value": value})
    return pa.Table.from_pylist(rows, schema=SCHEMA)
