"""The `config.yaml` of a training run, which repeats it."""

import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.compat.lightning import reopen_event_file
from lora_lightning.runs.files import cannot_be_written, write_text_atomically
from lora_lightning.runs.layout import CONFIG, run_folder_of
from lora_lightning.runs.resume import SETTINGS
from lora_lightning.runs.settings import text_fingerprint
from lora_lightning.training.step_boundary import StepBoundary


class RunConfigFile(Callback):
    """Keeps `config.yaml` in the folder of a training run, and notes in its checkpoints whose they are.

    Args:
        text: The file's content.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, folder: Path) -> None:
        """Writes the file unless it is there; on the main process, before others start, so that they find the run.

        Args:
            folder: The run's.

        Raises:
            TrainingError: If it cannot be written.
        """
        path = folder / CONFIG
        if path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, self.text)
        except OSError as error:
            raise cannot_be_written(path, error) from error

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watches over the folder from when training starts."""
        del pl_module
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if stage == "fit" and trainer.is_global_zero and isinstance(callback, StepBoundary):
                callback.before_logging = self.restore_run_folder

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes whose checkpoint it is."""
        del trainer, pl_module
        checkpoint[SETTINGS] = text_fingerprint(self.text)

    def restore_run_folder(self, trainer: Trainer) -> None:
        """Makes a run folder that vanished again, and asks for a stop after the step, to begin with curves again."""
        path = run_folder_of(trainer) / CONFIG
        if path.exists():
            return
        self.write(path.parent)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                reopen_event_file(logger)
        rank_zero_warn(f"the run folder {path.parent} vanished; it is made again, without the curves so far.")
        signal.raise_signal(signal.SIGTERM)
