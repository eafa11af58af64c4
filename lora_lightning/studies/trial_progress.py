"""How far a trial is: written by its worker every few seconds, and read by whoever shows the study."""

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lora_lightning.runs.files import write_text_atomically
from lora_lightning.studies.journal import ENDED, TrialStatus
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trials import Trial

INTERVAL = 1.0  # seconds between two writes


@dataclass(frozen=True)
class Progress:
    """How far a trial is.

    Attributes:
        phase: `"training"` or `"testing"`.
        step: Optimizer steps that are done.
        steps: Of a complete run; 0 if they are unknown, because only time or a callback ends the run.
        first_step: Steps that were done when this worker took the trial.
        seconds: That this worker has trained it.
    """

    phase: str
    step: int
    steps: int
    first_step: int
    seconds: float

    @property
    def complete_seconds(self) -> float:
        """Estimated seconds of training a complete run; NaN while nothing is known."""
        done = self.step - self.first_step
        return self.seconds / done * self.steps if done and self.steps else math.nan

    @property
    def seconds_left(self) -> float:
        """Estimated seconds of training that are left; NaN while nothing is known."""
        return self.complete_seconds * (1 - self.step / self.steps) if self.steps else math.nan


class TrialProgress(Callback):
    """Writes how far a trial is.

    A write that fails is left out: nothing but a display depends on it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = self._written = 0.0
        self._steps = self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the steps of a complete run."""
        del pl_module
        steps = trainer.estimated_stepping_batches
        self._steps = int(steps) if math.isfinite(steps) else 0
        self._first_step, self._start, self._written = trainer.global_step, time.monotonic(), 0.0
        self._write(trainer, "training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the file if the last time was a while ago."""
        del pl_module, outputs, batch, batch_idx
        self._write(trainer, "training")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes that training has ended."""
        del pl_module
        self._written = 0.0
        self._write(trainer, "testing")

    def _write(self, trainer: Trainer, phase: str) -> None:
        now = time.monotonic()
        if now - self._written < INTERVAL:
            return
        self._written = now
        found = Progress(phase, trainer.global_step, self._steps, self._first_step, now - self._start)
        try:
            write_text_atomically(self.path, json.dumps(asdict(found)) + "\n")
        except OSError:
            return


def read_progress(folder: StudyFolder, trial: Trial) -> Progress | None:
    """Reads how far a trial is.

    Args:
        folder: The study's folder.
        trial: The trial.

    Returns:
        Its progress; `None` if it is not known.
    """
    try:
        return Progress(**json.loads(folder.progress(trial).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def estimate_seconds_left(
    size: int,
    statuses: Mapping[str, TrialStatus],
    progress: Mapping[str, Progress],
    measured: Sequence[float],
) -> float:
    """Estimates how long a study still takes with the workers that it has now.

    Args:
        size: Number of all trials.
        statuses: The states of the known trials, by id.
        progress: Of the running trials, by id.
        measured: Seconds of trials that have ended.

    Returns:
        Seconds; NaN while nothing is known.
    """
    known = [found.complete_seconds for found in progress.values()]
    usual = _mean(measured) if measured else _mean([seconds for seconds in known if not math.isnan(seconds)])
    running = [name for name, status in statuses.items() if status.state == "running"]
    ended = sum(status.state in ENDED for status in statuses.values())
    left = usual * (size - ended - len(running))
    for name in running:
        found = progress.get(name)
        seconds = math.nan if found is None else found.seconds_left
        left += usual if math.isnan(seconds) else seconds
    return left / max(1, len(running))


def _mean(numbers: Collection[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan
