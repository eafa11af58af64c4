"""The base of the monitors: when they measure, and where the numbers go."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.errors import ConfigurationError
from lora_lightning.loggers import Board, Table, boards_of
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
        ("state", pa.string()),
    ]
)
TRAINING, EXPORTED = "training", "exported"  # what a row's weights are: those of its step, or those in adapter/


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


class Export(NamedTuple):
    """What a run exports.

    Attributes:
        step: Optimizer steps of the best checkpoint, whose weights it has.
        folder: `adapter/` of the run; on the main process's machine.
    """

    step: int
    folder: Path


class AdapterMonitor(Callback):
    """Base of the monitors: measures every n optimizer steps, or at each validation, and once what the run exports.

    Numbers go, one row a number, to `<run folder>/adapter_metrics/<table>.parquet` with the columns step, module,
    layer, kind, metric, value and state; `pandas.read_parquet(<run folder>/adapter_metrics)` reads the tables of all
    monitors. Loggers get those of all modules together as curves, and with `log_modules` those of each module, too;
    what is measured only once is a table and part of the run's results. `state` is `training` for the weights of that
    step, and `exported` for those in `adapter/` and `best.ckpt`, whose step it gives: rarely the last one, and under
    weight averaging the weights of no step. The file is complete after each validation and at the end; a run that is
    resumed in its folder continues it.

    Args:
        every_n_steps: Optimizer steps between measurements; `null` measures at each validation.
        log_modules: Whether loggers get a curve for each number of each module.
    """

    table: str  # name of the Parquet file, set by each monitor
    tag: str  # first part of the loggers' names, set by each monitor
    result_metrics: tuple[str, ...] = ()  # of all modules together; the run's results show them

    def __init__(self, every_n_steps: int | None = None, log_modules: bool = False) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            msg = f"{type(self).__name__}.every_n_steps is {every_n_steps}, but it must be at least 1, or null."
            raise ConfigurationError(msg)
        self.every_n_steps = every_n_steps
        self.log_modules = log_modules
        self.results: dict[str, float] = {}  # by tag
        self._parts: list[pa.Table] = []
        self._measured_at = -1
        self._saved_at: int | None = None
        self._export: Export | None = None  # while the exported weights are measured

    @property
    def only_at_the_end(self) -> bool:
        """Whether training itself is not measured, only what comes out of it."""
        return False

    @property
    def measures_once(self) -> bool:
        """Whether there is one measurement, which is no curve."""
        return self.only_at_the_end

    @property
    def result_tags(self) -> list[str]:
        """The tags of `results`, which are known before there are any."""
        return [f"{self.tag}/{metric}" for metric in self.result_metrics]

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Measures the weights that the model has now; every process calls it, the main one's numbers count."""
        raise NotImplementedError

    def add_pictures(self, trainer: Trainer, board: Board, measurements: list[Measurement]) -> None:
        """Adds pictures or histograms to a logger that shows them; on the main process only."""

    def conclude(self, trainer: Trainer, pl_module: LightningModule, export: Export | None) -> None:
        """Prints what was found when training has ended; every process calls it.

        Args:
            trainer: The trainer.
            pl_module: The task, with the weights that were just measured.
            export: What they are; `None` if the run exports nothing and they are those of the last step.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues the table of the run that is resumed in this folder; only now the step is restored."""
        del pl_module
        path = self.table_path(trainer)
        self._measured_at = 0  # nothing to see in a new adapter
        if trainer.is_global_zero and path.exists():
            old = read_table(path)
            is_known = pc.less_equal(old["step"], self._last_known(trainer))
            known = old.filter(pc.and_(is_known, pc.equal(old["state"], TRAINING)))
            self._parts = [known] if known.num_rows else []
            self._measured_at = pc.max(known["step"]).as_py() or 0
        # All processes measure, or none.
        self._measured_at = int(trainer.strategy.broadcast(self._measured_at))

    def _last_known(self, trainer: Trainer) -> int:
        """The last step whose numbers the checkpoint knows of; later ones are measured and logged again."""
        if trainer.ckpt_path is None:
            return -1
        return trainer.global_step if self._saved_at is None else self._saved_at

    def state_dict(self) -> dict[str, Any]:
        """The step that was measured last."""
        return {"measured_at": self._measured_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the step until training starts; older checkpoints do not have it."""
        saved_at = state_dict.get("measured_at")
        self._saved_at = None if saved_at is None else int(saved_at)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures if a step is due; batches that only accumulate gradients are no steps."""
        del outputs, batch, batch_idx
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            self.record(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, unless every n steps, and completes the file."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.every_n_steps is None and not self.only_at_the_end:
            self.record(trainer, pl_module)
        self.write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the last step, and completes the file; the run's checkpoint callback then calls `record_export`."""
        exports = has_export(trainer)
        if not (self.only_at_the_end and exports):
            self.record(trainer, pl_module)
        self.write(trainer)
        if not exports:
            self.conclude(trainer, pl_module, None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Completes the file: a run resumed from this checkpoint does not measure these steps again."""
        del pl_module, checkpoint
        self.write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what was measured."""
        del pl_module, exception
        self.write(trainer)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures this step, unless it is measured already, and publishes the numbers."""
        step = trainer.global_step
        if step == self._measured_at:
            return
        self._measured_at = step
        self.publish(trainer, step, self.measure(trainer, pl_module))

    def record_export(self, trainer: Trainer, pl_module: LightningModule, export: Export) -> None:
        """Measures the exported weights, publishes the numbers and concludes; every process calls it.

        Args:
            trainer: The trainer.
            pl_module: The task, with the exported weights for as long as this lasts.
            export: What is exported.
        """
        self._export = export
        try:
            self.publish(trainer, export.step, self.measure(trainer, pl_module), EXPORTED)
            self.write(trainer)
            self.conclude(trainer, pl_module, export)
        finally:
            self._export = None

    def publish(self, trainer: Trainer, step: int, measurements: list[Measurement], state: str = TRAINING) -> None:
        """Adds numbers to the table and to the loggers; on the main process only.

        Loggers have one curve a number: exported weights are a point of it only if no step of training is.

        Args:
            trainer: The trainer.
            step: Optimizer steps of the weights.
            measurements: The numbers.
            state: What the weights are.
        """
        if not trainer.is_global_zero or not measurements:
            return
        has_curve = any(part.num_rows for part in self._parts)
        self._parts.append(as_rows(step, measurements, state))
        self._keep_results(measurements)
        if state == EXPORTED and has_curve:
            return
        values = {self.tag_of(m): m.value for m in measurements if m.module == TOTAL or self.log_modules}
        for board in boards_of(trainer):
            if self.measures_once:
                board.add_constants(values, step)
                board.add_table(self.tag, self.as_table(measurements), step)
            else:
                board.add_numbers(values, step)
            if board.shows_pictures:
                self.add_pictures(trainer, board, measurements)

    def _keep_results(self, measurements: list[Measurement]) -> None:
        own = [m for m in measurements if m.module == TOTAL and m.metric in self.result_metrics]
        self.results |= {self.tag_of(m): m.value for m in own}

    def tag_of(self, measurement: Measurement) -> str:
        """The name of a number in loggers."""
        module = "" if measurement.module == TOTAL else f"{measurement.module}/"
        return f"{self.tag}/{module}{measurement.metric}"

    def as_table(self, measurements: list[Measurement]) -> Table:
        """Arranges numbers as a table, a row per module and a column per metric."""
        modules = dict.fromkeys(m.module for m in measurements)
        metrics = dict.fromkeys(m.metric for m in measurements)
        values = {(m.module, m.metric): m.value for m in measurements}
        rows = [[module, *(values.get((module, metric)) for metric in metrics)] for module in modules]
        return Table(["module", *metrics], rows)

    def table_path(self, trainer: Trainer) -> Path:
        """The Parquet file."""
        return run_folder_of(trainer) / TABLES / f"{self.table}.parquet"

    def write(self, trainer: Trainer) -> None:
        """Writes the file again, completely or not at all."""
        if not trainer.is_global_zero or not self._parts or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.table_path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._parts = [pa.concat_tables(self._parts).combine_chunks()]
        with atomic_file(path) as file:
            pq.write_table(self._parts[0], file)


def has_export(trainer: Trainer) -> bool:
    """Whether a checkpoint callback exports the best weights and has the monitors measure them."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return False
    return any(getattr(callback, "exports_adapter", False) for callback in trainer.checkpoint_callbacks)


def describe_weights(export: Export | None) -> str:
    """Names the weights that a sentence is about.

    Args:
        export: What is exported; `None` for the weights of the last step.

    Returns:
        Such as `adapter/, step 120`.
    """
    return "the last step" if export is None else f"{export.folder.name}/, step {export.step}"


def warn_without_adapters(monitor: Callback, pl_module: LightningModule) -> None:
    """Warns that a monitor of adapters has nothing to measure.

    Args:
        monitor: Which one.
        pl_module: The task, its model built.
    """
    if not adapted_layers(pl_module):
        name = type(monitor).__name__
        rank_zero_warn(f"{name} measures nothing: this model trains without adapters (model.lora is null).")


def as_rows(step: int, measurements: Iterable[Measurement], state: str = TRAINING) -> pa.Table:
    """Numbers as rows of a table.

    Args:
        step: Optimizer steps of the weights that were measured.
        measurements: The numbers.
        state: `training` or `exported`.

    Returns:
        One row a number: step, module, layer (null outside numbered layers), kind, metric, value, state.
    """
    rows = []
    for module, metric, value in measurements:
        layer, kind = split_layer_number(module)
        place = {"step": step, "module": module, "layer": layer, "kind": kind}
        rows.append({**place, "metric": metric, "value": value, "state": state})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def read_table(path: Path) -> pa.Table:
    """Reads a table of a monitor.

    Args:
        path: The Parquet file; one of a release before there was a `state` holds training alone.

    Returns:
        The columns of `SCHEMA`.
    """
    table = pq.read_table(path)
    if "state" not in table.column_names:
        table = table.append_column("state", pa.array([TRAINING] * table.num_rows, pa.string()))
    return table.select(SCHEMA.names).cast(SCHEMA)
