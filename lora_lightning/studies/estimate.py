"""Estimates what a run of a study takes, from a few steps of its reference in a temporary folder."""

import io
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lora_lightning.errors import LoraLightningError
from lora_lightning.runs.resources import synchronized_time
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_runs import CheckedStudy, Evaluations, base_configs, run_options
from lora_lightning.studies.trials import make_trial
from lora_lightning.training.api import train

MEASURED_STEPS, MEASURED_BATCHES = 8, 4


@dataclass(frozen=True)
class StudyEstimate:
    """What a run of the reference takes.

    Attributes:
        seconds: Of loading, training, validation and test.
        bytes: Of its run folder.
        steps: Optimizer steps of a run.
        measured_steps: How many of them were measured.
        why_unknown: Why nothing is known; empty if it is.
    """

    seconds: float = math.nan
    bytes: float = math.nan
    steps: int = 0
    measured_steps: int = 0
    why_unknown: str = ""


def estimate_study(plan: StudyPlan, checked: CheckedStudy) -> StudyEstimate:
    """Trains the reference for a few steps.

    Args:
        plan: The study.
        checked: What the check of the study found.

    Returns:
        What a run takes. Early stopping is not expected.
    """
    trial = make_trial(plan.study, plan.configuration(plan.reference), plan.study.seeds[0])
    probe = _Probe()
    short = {
        "trainer.max_steps": MEASURED_STEPS,
        "trainer.max_epochs": 1,
        "trainer.limit_val_batches": MEASURED_BATCHES,
        "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": 1,
        "test_after_fit": False,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = StudyFolder(Path(temporary) / plan.study.name)
        start = time.monotonic()
        try:
            with redirect_stdout(io.StringIO()):  # the name of the temporary folder tells nobody anything
                record = train(base_configs(plan), run_options(folder, trial) | short, callbacks=[probe])
        except LoraLightningError as error:
            return StudyEstimate(why_unknown=f"a run of {MEASURED_STEPS} steps is not possible, because {error}")
        other = time.monotonic() - start - sum(probe.train_seconds) - sum(probe.validation_seconds)
        size = sum(file.stat().st_size for file in record.folder.rglob("*") if file.is_file())
    steps = min(checked.steps, checked.epochs * probe.steps_per_epoch)
    if not probe.train_seconds or not math.isfinite(steps):
        return StudyEstimate(why_unknown="a run has no last step, or the data is too small to measure one")
    step, batch = (_mean(seconds) for seconds in (probe.train_seconds, probe.validation_seconds))
    tests = 1 + len(plan.study.truncations.get(plan.reference, ()))
    training, trained = steps * probe.batches_per_step, steps * probe.batches_per_step * step
    validations = count_validations(checked.evaluations, training, probe.batches_per_epoch, trained)
    evaluated = validations * limited(probe.validation_batches, checked.evaluations.validation)
    evaluated += tests * limited(probe.test_batches, checked.evaluations.test)
    return StudyEstimate(other + trained + evaluated * batch, size, int(steps), record.steps or 0)


def count_validations(evaluations: Evaluations, batches: float, batches_per_epoch: float, seconds: float) -> float:
    """Counts how often a run validates.

    Args:
        evaluations: Its options.
        batches: Training batches of the run.
        batches_per_epoch: Training batches of an epoch.
        seconds: Of its training.

    Returns:
        About how often.
    """
    interval, epochs = evaluations.interval, evaluations.epochs
    if not isinstance(interval, int | float):
        return seconds // max(1.0, _interval_seconds(interval))
    every = interval if isinstance(interval, int) else max(1, int(batches_per_epoch * interval))
    if epochs is None:
        return batches // every
    return batches / batches_per_epoch // epochs * (batches_per_epoch // every)


def _interval_seconds(interval: Any) -> float:
    """Seconds of an interval as Lightning takes it: `DD:HH:MM:SS`, what `timedelta` takes, or one."""
    if isinstance(interval, str):
        days, hours, minutes, seconds = map(int, interval.split(":"))
        interval = {"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
    found = interval if isinstance(interval, timedelta) else timedelta(**dict(interval))
    return found.total_seconds()


def limited(batches: Sequence[int], limit: float) -> int:
    """Counts the batches of several splits, of each up to a limit.

    Args:
        batches: Of each split.
        limit: Of Lightning: a number of batches, or as a float their share.
    """
    return sum(min(count, limit) if isinstance(limit, int) else int(count * limit) for count in batches)


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


class _Probe(Callback):
    """Measures batches, and counts those of a complete run."""

    def __init__(self) -> None:
        self.train_seconds: list[float] = []
        self.validation_seconds: list[float] = []
        self.steps_per_epoch = self.batches_per_step = 1
        self.batches_per_epoch = 1.0
        self.validation_batches: list[int] = []  # of each split
        self.test_batches: list[int] = []
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts batches."""
        del pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.batches_per_step = trainer.accumulate_grad_batches
        self.batches_per_epoch = trainer.num_training_batches
        self.steps_per_epoch = math.ceil(trainer.num_training_batches / self.batches_per_step)
        data.setup("test")
        self.validation_batches = _count_batches(data.val_dataloader())
        self.test_batches = _count_batches(data.test_dataloader())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        del pl_module, batch, batch_idx
        self._since = synchronized_time(trainer.strategy.root_device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock; the first batch does not count."""
        del pl_module, outputs, batch
        if batch_idx:
            self.train_seconds.append(synchronized_time(trainer.strategy.root_device) - self._since)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Starts the clock."""
        del pl_module, batch, batch_idx, dataloader_idx
        self._since = synchronized_time(trainer.strategy.root_device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops the clock."""
        del pl_module, outputs, batch, batch_idx, dataloader_idx
        self.validation_seconds.append(synchronized_time(trainer.strategy.root_device) - self._since)


def _count_batches(loaders: Any) -> list[int]:
    return [len(loader) for loader in (loaders if isinstance(loaders, list) else [loaders])]
