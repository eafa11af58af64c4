"""Saves the best and the last checkpoint, and exports the adapter of the best checkpoint in PEFT's format."""

import shutil
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast

from lightning import LightningModule, Trainer
from safetensors import SafetensorError
from torch import Tensor

from lora_lightning.backbones.base_model_id import NamedBase
from lora_lightning.backbones.export import export_model
from lora_lightning.backbones.saved_base import BASE_MODEL
from lora_lightning.callbacks.adapter_monitor import AdapterMonitor, Export
from lora_lightning.compat.lightning import HookedCheckpoint, batch_progress, take_back_batch
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.sharding import full_state_dict, is_sharded
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.files import write_error
from lora_lightning.runs.history import read_json
from lora_lightning.runs.layout import (
    ADAPTER_FOLDER,
    BEST,
    CHECKPOINTS,
    COMPLETE_STEP,
    EVENT_SIZES,
    RUN,
    event_sizes,
    run_folder_of,
)
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.checkpoint_weights import temporary_weights
from lora_lightning.training.earlier_run import EarlierRun


class AdapterCheckpoint(HookedCheckpoint):
    """Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt`, and `adapter/` whenever there is a new best epoch.

    `adapter/` is a PEFT folder (safetensors, `adapter_config.json`, tokenizer, label names), or a transformers
    folder after full fine-tuning. It holds the weights that `best.ckpt` holds, or `last.ckpt` if no validation decided
    which is the best, also if another callback saves other
    weights than those that train, as `EMAWeightAveraging` does. When training ends, the monitors measure them.

    `last.ckpt` is written after complete steps or after validation, and after all other files. A run that is resumed
    from it therefore repeats what was interrupted, and ends with the same weights and metrics as an uninterrupted run.

    Args:
        monitor: The validation metric that selects the best checkpoint.
        mode: `max` if higher values of the metric are better, `min` if lower values are.
        every_n_train_steps: Number of optimizer steps after which `last.ckpt` is written within an epoch. With `null`
            it is written only after validation, so a killed run resumes from its last validation.
    """

    exports_adapter = True  # the monitors leave their final measurement to this callback

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = 500,
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            msg = f"checkpoint.every_n_train_steps is {every_n_train_steps}, but it must be at least 1, or null."
            raise ConfigurationError(msg)
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=BEST,
            save_last=True,
            save_on_train_epoch_end=False,  # but after validation, which chooses the threshold
            enable_version_counter=False,
        )
        self.best_metrics: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self.validated_step: int | None = None  # of the last validation that could select the best checkpoint
        self._score_before: Tensor | None = None
        self.adapter_folder: Path | None = None
        self.named_base: NamedBase | None = None  # the base's id for exports, if the user gives one
        self.steps_between = every_n_train_steps  # not Lightning's attribute, which would also look for a new best
        self._last_saved: tuple[int, int] | None = None  # the position in training of last.ckpt
        self._between_steps = False
        self._has_ended = False
        self.earlier: EarlierRun | None = None  # that of the checkpoint from which a new run starts
        self.keeps_score = True  # of that run
        self.adopted: Path | None = None  # its best checkpoint, if no validation of this run was better
        self._being_written: dict[str, Any] | None = None  # the checkpoint, as changed by other callbacks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Puts the checkpoints into the run folder, which some loggers do not know."""
        if stage == "fit" and self.dirpath is None:
            self.dirpath = str(run_folder_of(trainer) / CHECKPOINTS)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Monitors no metric if there is no validation, because no epoch can be the best then."""
        super().on_train_start(trainer, pl_module)
        if (
            trainer.ckpt_path is not None
            and Path(trainer.ckpt_path).absolute().parent == Path(self.dirpath or ".").absolute()
        ):
            self._last_saved = _position(trainer)  # resumes in the run's own folder
            self.last_model_path = self.last_model_path or str(trainer.ckpt_path)  # perhaps there is no step left
        if not trainer.enable_validation:
            self.monitor = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last checkpoint if there is no validation to save it after."""
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.enable_validation:
            self.save_last_if_needed(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last checkpoint, and the best one if the metric has improved."""
        self._check_monitor(trainer)
        if trainer.sanity_checking:
            return
        self._latest = _validation_metrics(trainer)
        if cast("AdaptationTask", pl_module).may_be_best:
            self.validated_step = trainer.global_step
            super().on_validation_end(trainer, pl_module)
        self.save_last_if_needed(trainer)  # Lightning does so only if there is a new best checkpoint

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last steps, exports them if none is the best, and has the monitors measure the exported weights.

        Lightning calls checkpoint callbacks last, so the monitors have already recorded the last step.
        """
        task = cast("AdaptationTask", pl_module)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.earlier is not None and trainer.global_step == self.earlier.steps:
            return  # no step of its own, which is an error
        self.save_last_if_needed(trainer)
        if self.best_model_path and self.adapter_folder is None:
            self._adopt_best(trainer)
        if self.adapter_folder is None:
            self._export(trainer, task, self._read(trainer, self.exported_path)["state_dict"])
        self._has_ended = True
        self._measure_export(trainer, task)

    def _adopt_best(self, trainer: Trainer) -> None:
        """Copies the best checkpoint of the run that this one continues, if no later epoch was better."""
        own, self.adopted = Path(self.dirpath or ".") / f"{BEST}.ckpt", Path(self.best_model_path)
        if trainer.is_global_zero:
            read_checkpoint(self.best_model_path)  # an error names the file that the user has
            try:
                shutil.copyfile(self.best_model_path, own)
            except OSError as error:
                raise write_error(run_folder_of(trainer), error) from error
        trainer.strategy.barrier()
        self.best_model_path = str(own)

    @property
    def has_validated(self) -> bool:
        """Whether a validation of this session reported metrics."""
        return bool(self._latest)

    @property
    def exported_path(self) -> str:
        """The best checkpoint, or the last one if none is the best; empty before the first."""
        return self.best_model_path or self.last_model_path

    def save_last_when_due(self, trainer: Trainer) -> None:
        """Writes `last.ckpt` every `every_n_train_steps` steps; the next batch may be loaded, but not trained on."""
        steps = trainer.global_step
        if self.steps_between is not None and steps > 0 and steps % self.steps_between == 0:
            self.save_last_between_steps(trainer)

    def save_last_between_steps(self, trainer: Trainer) -> None:
        """Writes `last.ckpt` between two steps; the next batch may be loaded, but not trained on."""
        self._between_steps = True
        saved_at = self.last_saved_step
        self.save_last_if_needed(trainer)
        self.last_saved_step = saved_at  # otherwise Lightning would not look for a new best checkpoint at this step
        self._between_steps = False

    def save_last_if_needed(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`, unless it was written at this position in training."""
        if not self.is_last_saved(trainer) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_last_file_now(trainer)

    def is_last_saved(self, trainer: Trainer) -> bool:
        """Returns whether `last.ckpt` was written at this position in training."""
        return self._last_saved == _position(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the event files' sizes and whether the step is complete; omits a batch that was loaded but not used.

        Values that validation chose, such as a threshold, must not be averaged. They replace the values of a callback
        such as `EMAWeightAveraging`.
        """
        state, buffers = checkpoint["state_dict"], dict(pl_module.named_buffers(recurse=False))
        checkpoint["state_dict"] = {**state, **{name: value for name, value in buffers.items() if name in state}}
        if self._being_written is not None:
            self._being_written = checkpoint
        checkpoint[COMPLETE_STEP] = not _is_within_step(trainer)
        checkpoint[EVENT_SIZES] = event_sizes(run_folder_of(trainer)) if trainer.is_global_zero else {}
        if self._between_steps:
            take_back_batch(checkpoint)

    def save_last_file(self, trainer: Trainer, candidates: dict[str, Tensor]) -> None:
        """Writes `last.ckpt`, unless gradients are being accumulated, which a checkpoint does not contain."""
        if not _is_within_step(trainer):
            super().save_last_file(trainer, candidates)
            self._last_saved = _position(trainer)

    def save_file(self, trainer: Trainer, filepath: str) -> None:
        """Writes the loggers' curves, one checkpoint, and the adapter if it is the best checkpoint.

        Raises:
            TrainingError: If a file cannot be written.
        """
        try:
            if trainer.is_global_zero:
                run_folder_of(trainer).mkdir(parents=True, exist_ok=True)  # it may have vanished
                for logger in trainer.loggers:
                    logger.save()  # if the process is killed, buffered values are lost
            self._being_written = {}
            super().save_file(trainer, filepath)
            if Path(filepath).stem == BEST:
                self.best_metrics, self._score_before = self._latest, self.best_model_score
                self._export(
                    trainer, cast("AdaptationTask", trainer.lightning_module), self._being_written["state_dict"]
                )
        except (OSError, SafetensorError) as error:
            raise write_error(run_folder_of(trainer), error) from error
        finally:
            self._being_written = None

    def remove_file(self, trainer: Trainer, filepath: str) -> None:
        """Removes nothing: both files are overwritten, and the path may come from an untrusted checkpoint."""

    @property
    def state_key(self) -> str:
        """Returns the same key for every monitored metric, so that a resumed run always finds the state."""
        return type(self).__qualname__

    def _check_monitor(self, trainer: Trainer) -> None:
        names = list(_validation_metrics(trainer))
        if names and self.monitor is not None and self.monitor not in trainer.callback_metrics:
            raise unknown_monitor_error(self.monitor, names)

    def _export(self, trainer: Trainer, task: AdaptationTask, state: Mapping[str, Tensor]) -> None:
        """Exports the weights of a checkpoint, which may differ from the model's if a callback averages weights.

        Args:
            trainer: The trainer.
            task: The task with its network built.
            state: The checkpoint's `state_dict`. The main process needs full tensors.
        """
        self.adapter_folder = Path(self.dirpath or ".").parent / ADAPTER_FOLDER
        network = task.built_network
        sharded = is_sharded(network)
        full = full_state_dict(network, keep=trainer.is_global_zero) if sharded else {}  # collective
        if not trainer.is_global_zero:
            return
        full |= {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
        datamodule = cast("AdaptationDataModule", trainer.datamodule)  # type: ignore[attr-defined]
        chosen = {name: value for name, value in state.items() if not name.startswith("network.")}  # thresholds
        with temporary_weights(task, chosen):
            files = task.export_files()
        if task.lora is not None and task.base_identity is not None:
            files |= {f"{BASE_MODEL}.json": task.base_identity.as_dict()}
        origin = read_json(run_folder_of(trainer) / RUN).get("continued_from")
        with nullcontext() if sharded else temporary_weights(task, state):
            export_model(
                network,
                datamodule.tokenizer,
                self.adapter_folder,
                files,
                full if sharded else None,
                origin,
                self.named_base,
            )

    def _measure_export(self, trainer: Trainer, task: AdaptationTask) -> None:
        """Lets every monitor measure the exported weights, which are rarely those of the last step."""
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, AdapterMonitor)]  # type: ignore[attr-defined]
        if not monitors or self.adapter_folder is None:
            return
        checkpoint = self._read(trainer, self.exported_path)
        export = Export(int(checkpoint["global_step"]), self.adapter_folder)
        with temporary_weights(task, checkpoint["state_dict"]):
            for monitor in monitors:
                monitor.record_export(trainer, task, export)

    @staticmethod
    def _read(trainer: Trainer, path: str) -> dict[str, Any]:
        """Reads step and weights of a checkpoint on the main process and sends them to the others; collective."""
        content: dict[str, Any] = {}
        if trainer.is_global_zero:
            checkpoint = read_checkpoint(path)
            content = {name: checkpoint[name] for name in ("global_step", "state_dict")}
        return trainer.strategy.broadcast(content)

    def state_dict(self) -> dict[str, object]:
        """Returns Lightning's state and the best epoch's metrics; those of this epoch while `best.ckpt` is written."""
        is_best = self.best_model_score is not self._score_before
        own = {
            "best_metrics": self._latest if is_best else self.best_metrics,
            "validated_step": self.validated_step,
        }
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restores Lightning's state and the best epoch's metrics, also if the run continues in a new folder.

        A new run that starts from another run's checkpoint keeps the score to beat only if `keeps_score` is true.
        """
        if not self.keeps_score or self._has_ended:  # a test after training needs the weights only
            return
        step = state_dict.get("validated_step")  # checkpoints of earlier releases have none
        self.validated_step = step if isinstance(step, int) else None
        best, own = Path(str(state_dict.get("best_model_path") or "")), self.dirpath
        moved = Path(own or ".") / best.name if self.earlier is None else self.earlier.best
        if best.name and not best.is_file() and moved is not None and moved.is_file():  # with the run's folder
            best = moved
            state_dict = {**state_dict, "best_model_path": str(moved)}
        if not best.is_file():  # moved, deleted or never written: there is no score to beat
            return
        self.best_metrics = cast("dict[str, float]", state_dict.get("best_metrics", {}))
        self.dirpath = cast("str", state_dict.get("dirpath", own))  # otherwise Lightning discards the score
        is_own = best.absolute().parent == Path(own or ".").absolute()
        self.adapter_folder = best.parent.parent / ADAPTER_FOLDER if is_own else None  # never another run's
        super().load_state_dict(state_dict)
        self.dirpath = own
        self._score_before = self.best_model_score


def unknown_monitor_error(monitor: str, names: Collection[str]) -> ConfigurationError:
    """Returns the error for a monitored metric that validation does not report.

    Args:
        monitor: The value of `checkpoint.monitor`.
        names: The metrics that validation reports.

    Returns:
        The error to raise.
    """
    remedy = suggest_names(monitor, names)
    return ConfigurationError(f"checkpoint.monitor is {monitor!r}, which validation does not report; {remedy}")


def _is_within_step(trainer: Trainer) -> bool:
    """Returns whether validation interrupts a step, so that a checkpoint would lack its accumulated gradients."""
    progress, every = batch_progress(trainer), trainer.accumulate_grad_batches
    return bool(trainer.validating and progress.current.completed % every != 0 and not progress.is_last_batch)


def _position(trainer: Trainer) -> tuple[int, int]:
    """Returns the number of optimizer steps and batches so far."""
    return trainer.global_step, batch_progress(trainer).total.completed


def _validation_metrics(trainer: Trainer) -> dict[str, float]:
    values = trainer.callback_metrics.items()
    return {name: float(value) for name, value in values if name.startswith(("val/", "val_"))}
