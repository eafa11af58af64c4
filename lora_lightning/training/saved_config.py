"""Writes the `config.yaml` of a training run, with which the run can be repeated."""

import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.compat.lightning import reopen_event_file
from lora_lightning.runs.files import write_error, write_text_atomically
from lora_lightning.runs.layout import CONFIG, run_folder_of
from lora_lightning.runs.resume import SETTINGS
from lora_lightning.runs.settings import text_fingerprint
from lora_lightning.training.step_boundary import StepBoundary


class RunConfigFile(Callback):
    """Writes `config.yaml` to the run folder, and a fingerprint of it to the run's checkpoints.

    Args:
        text: The content of the file.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, folder: Path) -> None:
        """Writes the file unless it exists. The main process does so before it starts others, which look for the run.

        Args:
            folder: The run folder.

        Raises:
            TrainingError: If the file cannot be written.
        """
        path = folder / CONFIG
        if path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, self.text)
        except OSError as error:
            raise write_error(path, error) from error

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes `StepBoundary` check before each log that the run folder still exists."""
        del pl_module
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if stage == "fit" and trainer.is_global_zero and isinstance(callback, StepBoundary):
                callback.before_logging = self.restore_run_folder

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the fingerprint of `config.yaml`, which identifies the checkpoint's run."""
        del trainer, pl_module
        checkpoint[SETTINGS] = text_fingerprint(self.text)

    def restore_run_folder(self, trainer: Trainer) -> None:
        """Creates a run folder that has disappeared again, and requests a stop, because its curves are lost."""
        path = run_folder_of(trainer) / CONFIG
        if path.exists():
            return
        self.write(path.parent)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                reopen_event_file(logger)
        rank_zero_warn(f"the run folder {path.parent} disappeared; it is created again, without the previous curves.")
        signal.raise_signal(signal.SIGTERM)
