"""The last pass of a study: times training steps and inference of its trials, one at a time and with nothing beside."""

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lora_lightning.errors import ConfigurationError, LoraLightningError, TrialsFailed
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.merging import merge_targets, merged_adapters
from lora_lightning.runs.files import save_text, write_error
from lora_lightning.runs.record import RunRecord
from lora_lightning.runs.resources import synchronized_time
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_measurements import COSTS, TrialCosts
from lora_lightning.studies.trial_numbers import DEVICE, TIMINGS, read_numbers
from lora_lightning.studies.trial_runs import base_configs, run_options
from lora_lightning.studies.trials import Trial
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.training.api import run_arguments, train
from lora_lightning.training.commands import explain_errors, prepare_command
from lora_lightning.training.evaluation import score_split

LOCK = "timings.lock"
STEPS = 20  # of training; the first one of an epoch is not timed
BATCHES = {1: 16, 32: 2}  # number of batches by their size
ROUNDS = 5  # over these batches; the median counts

Batch = dict[str, Tensor]


def time_trials(
    study: OpenStudy, on_end: Callable[[Trial, dict[str, float], str], None] = lambda *_: None
) -> dict[str, dict[str, float]]:
    """Times all finished and tested trials that have not been timed yet; waits while another process does so.

    Args:
        study: The study.
        on_end: Called after each trial with its times, and with why it has none.

    Returns:
        Times by trial. A trial whose times were disturbed by another run of the study has none.

    Raises:
        LoraLightningError: If a file cannot be written.
    """
    found: dict[str, dict[str, float]] = {}
    with _one_at_a_time(study.folder.path / LOCK):
        for trial in study.plan.tested:
            path = study.folder.run(trial) / TIMINGS
            if study.statuses()[trial.id].state != "finished" or path.exists():
                continue
            times, device, problem = _time_if_alone(study, trial)
            if times:
                found[trial.id] = times
                save_text(path, json.dumps({**times, **device}) + "\n")
            on_end(trial, times, problem)
    return found


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def check_all_timed(problems: Sequence[tuple[Trial, str]]) -> None:
    """Raises an error if trials have no times.

    Args:
        problems: The trials without times, each with the reason.

    Raises:
        TrialsFailed: Names the first one and its reason.
    """
    if problems:
        trial, problem = problems[0]
        msg = f"{len(problems)} trials have no times, the first one ({trial.title}) because {problem}; "
        msg += "once that is over, repeat the command with --timings, which times what is left"
        raise TrialsFailed(msg)


def _time_if_alone(study: OpenStudy, trial: Trial) -> tuple[dict[str, float], dict[str, str | None], str]:
    """Its times, the device that they are of, and why it has none."""
    company = "another run of the study was training, which slows it down"
    if not study.is_alone(trial):
        return {}, {}, company
    start = time.time()
    try:
        of_steps, device = time_steps(study, trial)
        times = {**of_steps, **time_inference(RunRecord.load(study.folder.run(trial)))}
    except LoraLightningError as error:
        return {}, {}, str(error)
    return (times, device, "") if study.is_alone(trial, start) else ({}, {}, company)


def time_steps(study: OpenStudy, trial: Trial) -> tuple[dict[str, float], dict[str, str | None]]:
    """Times optimizer steps of a trial, which is trained from scratch in a temporary folder.

    Args:
        study: The study.
        trial: The trial.

    Returns:
        `seconds_per_step`, empty if no epoch has two batches; and the device, by the names of `RunRecord`.

    Raises:
        LoraLightningError: If it cannot be trained.
    """
    short = {"trainer.max_steps": STEPS, "trainer.limit_val_batches": 1, "test_after_fit": False}
    with tempfile.TemporaryDirectory() as temporary:
        folder = StudyFolder(Path(temporary) / study.plan.study.name)
        with redirect_stdout(io.StringIO()):  # the name of the temporary folder tells nobody anything
            options = run_options(folder, trial) | short
            record = train(base_configs(study.planned), options, callbacks=[TrialCosts(lambda _: True)])
        costs = read_numbers(record.folder / COSTS)
    device = dict(zip(DEVICE, (record.device, record.device_name), strict=True))
    return {name: seconds for name, seconds in costs.items() if name == "seconds_per_step"}, device


def time_inference(record: RunRecord) -> dict[str, float]:
    """Times the inference of a finished run.

    Args:
        record: The run.

    Returns:
        Milliseconds a sample, `inference_ms_adapter_batch_1` and so on: for batches of 1 and 32, with the adapter and
        merged. A model without an adapter has the merged ones, and an adapter that cannot be merged has none of them.

    Raises:
        LoraLightningError: If the run cannot be evaluated.
    """
    timer = InferenceTimer()
    overrides = {"trainer.logger": False, "trainer.limit_test_batches": 1, "trainer.enable_progress_bar": False}
    with explain_errors():
        cli = prepare_command("test", run_arguments(record, overrides))
        cli.trainer.callbacks.append(timer)  # type: ignore[attr-defined]
        score_split(cli, "test")
    return timer.times


class InferenceTimer(Callback):
    """Times the model before its test starts.

    Attributes:
        times: As from `time_inference`.
    """

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Times it with the adapter, and merged."""
        task = cast("AdaptationTask", pl_module)
        batches = {size: spread_batches(trainer, size, count) for size, count in BATCHES.items()}
        if not adapted_layers(task):
            self._time("merged", trainer, task, batches)
            return
        self._time("adapter", trainer, task, batches)
        # In-place changes of weights are not for inference mode, in which Lightning tests.
        with torch.inference_mode(mode=False), torch.no_grad():
            try:
                with merged_adapters(task, merge_targets(task)[0]):
                    self._time("merged", trainer, task, batches)
            except ConfigurationError:  # such as a layer that cannot be merged
                return

    def _time(self, kind: str, trainer: Trainer, task: AdaptationTask, batches: dict[int, list[Batch]]) -> None:
        device = trainer.strategy.root_device
        with trainer.precision_plugin.test_step_context():
            for size, rows in batches.items():
                seconds = list(round_seconds(lambda batch: run_batch(task, batch), rows, device))
                self.times[f"inference_ms_{kind}_batch_{size}"] = 1000 * statistics.median(seconds) / (size * len(rows))


def spread_batches(trainer: Trainer, size: int, count: int) -> list[Batch]:
    """Collates batches of rows that are spread over the first test split; of few rows, some come several times.

    Args:
        trainer: With the data.
        size: Rows of a batch.
        count: Number of batches.

    Returns:
        The batches, on the device.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    dataset = data.splits[data.split_names("test")[0]]
    rows = np.linspace(0, len(dataset) - 1, size * count).round().astype(np.int64)
    return [trainer.strategy.batch_to_device(dataset[rows[number::count]]) for number in range(count)]


def run_batch(task: AdaptationTask, batch: Batch) -> None:
    """Runs the model on a batch, with its head.

    Args:
        task: The task, in evaluation mode.
        batch: On the device.
    """
    found = task.evaluate(batch)
    if isinstance(task, CausalLanguageModelingTask):  # which has only run up to the head
        task.next_token.score(batch, found)


def round_seconds(run: Callable[[Batch], None], batches: Sequence[Batch], device: torch.device) -> Iterator[float]:
    """Times several rounds over some batches, after one that does not count.

    Args:
        run: Runs a batch.
        batches: The batches.
        device: Where they are.

    Yields:
        Seconds of each round.
    """
    for number in range(ROUNDS + 1):
        start = synchronized_time(device)
        for batch in batches:
            run(batch)
        if number:
            yield synchronized_time(device) - start
