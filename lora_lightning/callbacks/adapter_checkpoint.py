"""Keep the best checkpoint, and beside it the adapter in PEFT's own format."""

from pathlib import Path
from typing import Any, Literal, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lora_lightning.backbones.export import export_model
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.errors import ConfigurationError, nearest
from lora_lightning.tasks import AdaptationTask

ADAPTER_FOLDER = "adapter"
BEST = "best"


class AdapterCheckpoint(ModelCheckpoint):
    """Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt`, and `adapter/` whenever the best one changes.

    `adapter/` is a PEFT folder (safetensors, `adapter_config.json`, tokenizer, label names), or a transformers
    folder after full fine-tuning.

    `last.ckpt` is written between two optimizer steps or after validation, and last of all, so that a run resumed from
    it does again whatever a kill interrupted, and ends in the same weights and metrics as one that was not killed.

    Args:
        monitor: The validation metric that decides.
        mode: `max` where higher is better, `min` where lower is.
        every_n_train_steps: Optimizer steps between writes of `last.ckpt` within an epoch; `null` writes it at
            validations only.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = 500,
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            msg = f"checkpoint.every_n_train_steps is {every_n_train_steps}, but 1 or more, or null, is needed."
            raise ConfigurationError(msg)
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=BEST,
            save_last=True,
            save_on_train_epoch_end=False,  # after validation, when the threshold is chosen
            enable_version_counter=False,
        )
        self.best_metrics: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._score_before: Tensor | None = None
        self.adapter_folder: Path | None = None
        self.steps_between = every_n_train_steps  # not Lightning's attribute, which would look for a new best, too
        self._between_batches = False
        self._overdue = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without validation nothing can be best: keeps the latest epoch instead."""
        super().on_train_start(trainer, pl_module)
        if not trainer.enable_validation:
            self.monitor = None
            self._save_on_train_epoch_end = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves between two steps: only now everything about the last one, its validation too, is done and logged."""
        del pl_module, batch
        if batch_idx == 0 or batch_idx % trainer.accumulate_grad_batches:  # gradients are in no checkpoint
            return
        due = self.steps_between is not None and trainer.global_step % self.steps_between == 0
        if due or self._overdue:
            self._between_batches = True
            self._keep_last(trainer)
            self._between_batches = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, and exports the adapter if this epoch is the best so far."""
        self._check_monitor(trainer)
        if trainer.sanity_checking:
            return
        self._score_before, self._latest = self.best_model_score, _validation_metrics(trainer)
        super().on_validation_end(trainer, pl_module)
        self._keep_last(trainer)  # Lightning does so only with a new best

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the steps since the last validation, and exports where no validation ran at all."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._keep_last(trainer)
        if not self.best_model_path:
            self.best_model_path = self.last_model_path
            self._export(trainer, cast("AdaptationTask", pl_module))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leaves the batch out that is loaded, but not trained on."""
        del trainer, pl_module
        if self._between_batches:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            progress["current"]["ready"] -= 1
            progress["total"]["ready"] -= 1
            progress["is_last_batch"] = False

    def _keep_last(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # saved at this step already, or fast_dev_run
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Saves `last.ckpt`, unless gradients are half accumulated: then at the next step."""
        progress, every = trainer.fit_loop.epoch_loop.batch_progress, trainer.accumulate_grad_batches
        half_accumulated = progress.current.completed % every != 0 and not progress.is_last_batch
        self._overdue = trainer.validating and half_accumulated
        if not self._overdue:
            super()._save_last_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Saves one file, curves before it and the adapter after it."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # a kill loses what a logger still holds
        super()._save_checkpoint(trainer, filepath)
        if Path(filepath).stem == BEST:
            self.best_metrics, self._score_before = self._latest, self.best_model_score
            self._export(trainer, cast("AdaptationTask", trainer.lightning_module))

    @property
    def state_key(self) -> str:
        """One key whatever is monitored, so that a resumed run always finds the state."""
        return type(self).__qualname__

    def _check_monitor(self, trainer: Trainer) -> None:
        names = list(_validation_metrics(trainer))
        if names and self.monitor is not None and self.monitor not in trainer.callback_metrics:
            remedy = nearest(self.monitor, names)
            msg = f"checkpoint.monitor is {self.monitor!r}, which validation does not report; {remedy}"
            raise ConfigurationError(msg)

    def _export(self, trainer: Trainer, task: AdaptationTask) -> None:
        self.adapter_folder = Path(self.dirpath or ".").parent / ADAPTER_FOLDER
        if trainer.is_global_zero:
            datamodule = cast("AdaptationDataModule", trainer.datamodule)  # type: ignore[attr-defined]
            export_model(task.built_network, datamodule.tokenizer, self.adapter_folder, task.export_files())

    def state_dict(self) -> dict[str, object]:
        """Lightning's state and the best epoch's metrics, which are this epoch's while the best is being saved."""
        is_best = self.best_model_score is not self._score_before
        return {**super().state_dict(), "best_metrics": self._latest if is_best else self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Lightning's state and the best epoch's metrics; a run resumed in a new folder keeps the score to beat."""
        best, own = Path(str(state_dict.get("best_model_path") or "")), self.dirpath
        if not best.is_file():  # moved or deleted, or no path at all: there is nothing to beat
            return
        self.best_metrics = cast("dict[str, float]", state_dict.get("best_metrics", {}))
        self.dirpath = cast("str", state_dict.get("dirpath", own))  # or Lightning forgets the score
        self.adapter_folder = best.parent.parent / ADAPTER_FOLDER
        super().load_state_dict(state_dict)
        self.dirpath = own
        self._score_before = self.best_model_score


def _validation_metrics(trainer: Trainer) -> dict[str, float]:
    values = trainer.callback_metrics.items()
    return {name: float(value) for name, value in values if name.startswith(("val/", "val_"))}
