"""The `config.yaml` of a training run, which repeats it."""

import signal
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.compat.lightning import reopen_event_file
from lora_lightning.runs.files import cannot_be_written, write_whole
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.runs.resume import SETTINGS, fingerprint
from lora_lightning.training.step_boundary import StepBoundary


class SaveRunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the folder of a training run.

    Args:
        parser: Writes the options.
        config: The options.
        resumed: The run's `config.yaml`, where one goes on; empty for a new run.
        more: As in Lightning.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, resumed: str = "", **more: Any) -> None:
        super().__init__(parser, config, **more)
        self.text = resumed

    def begin(self, folder: Path) -> None:
        """Writes the file, unless the run has it; on the main process, before others start, so that they find the run.

        Args:
            folder: The run's.
        """
        if not self.text:
            self.text = dump_settings(self.parser, self.config)
            self._write(folder / self.config_filename)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watches over the folder when training starts; Lightning's own would write another file."""
        del pl_module
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if stage == "fit" and trainer.is_global_zero and isinstance(callback, StepBoundary):
                callback.before_logging = self.make_again

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes whose checkpoint it is."""
        del trainer, pl_module
        checkpoint[SETTINGS] = fingerprint(self.text)

    def make_again(self, trainer: Trainer) -> None:
        """Makes a run folder that vanished again, and asks for a stop after the step, to begin with curves again."""
        path = run_folder_of(trainer) / self.config_filename
        if path.exists():
            return
        self._write(path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                reopen_event_file(logger)
        rank_zero_warn(f"the run folder {path.parent} vanished; it is made again, without the curves so far.")
        signal.raise_signal(signal.SIGTERM)

    def _write(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, self.text)
        except OSError as error:
            raise cannot_be_written(path, error) from error


def dump_settings(parser: LightningArgumentParser, config: Any) -> str:
    """The options of `fit` as YAML that repeats the run.

    Args:
        parser: Of the command.
        config: The options.

    Returns:
        All of them but `resume`, which says how a command starts, not what it does.
    """
    config = config.clone()
    config.resume = None
    text: str = parser.dump(config, skip_none=False)
    return text
