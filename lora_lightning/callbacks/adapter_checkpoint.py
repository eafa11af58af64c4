"""Keep the best checkpoint, and beside it the adapter in PEFT's own format."""

from pathlib import Path
from typing import Literal, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lora_lightning.backbones.export import export_model
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.errors import ConfigurationError, nearest
from lora_lightning.tasks import AdaptationTask

ADAPTER_FOLDER = "adapter"


class AdapterCheckpoint(ModelCheckpoint):
    """Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt`, and `adapter/` whenever the best one changes.

    `adapter/` is a PEFT folder (safetensors, `adapter_config.json`, tokenizer, label names), or a transformers
    folder after full fine-tuning.

    Args:
        monitor: The validation metric that decides.
        mode: `max` where higher is better, `min` where lower is.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            save_last=True,
            save_on_train_epoch_end=False,  # after validation, when the threshold is chosen
            enable_version_counter=False,
        )
        self.best_metrics: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._score_before: Tensor | None = None
        self.adapter_folder: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without validation nothing can be best: keeps the latest epoch instead."""
        super().on_train_start(trainer, pl_module)
        if not trainer.enable_validation:
            self.monitor = None
            self._save_on_train_epoch_end = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, and exports the adapter if this epoch is the best so far."""
        self._check_monitor(trainer)
        if trainer.sanity_checking:
            return
        self._score_before, self._latest = self.best_model_score, _validation_metrics(trainer)
        super().on_validation_end(trainer, pl_module)
        self._keep_last(trainer)  # Lightning does so only with a new best
        if self.best_model_score is not self._score_before:
            self.best_metrics, self._score_before = self._latest, self.best_model_score
            self._export(trainer, cast("AdaptationTask", pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves here only where there is no validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._export(trainer, cast("AdaptationTask", pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the steps since the last validation, and exports where no validation ran at all."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._keep_last(trainer)
        if not self.best_model_path:
            self.best_model_path = self.last_model_path
            self._export(trainer, cast("AdaptationTask", pl_module))

    def _keep_last(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # saved at this step already, or fast_dev_run
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Removes nothing: both files are written over, and a path may come from a checkpoint of someone else's."""

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
