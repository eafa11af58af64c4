"""A worker of a study: takes one trial after the other, trains it, and records how it ended."""

import gc
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from lightning import Callback

from lora_lightning.errors import LoraLightningError, TrainingError, TrialsFailed
from lora_lightning.runs.record import RunRecord
from lora_lightning.runs.resume import how_it_finished
from lora_lightning.studies.adapter_ranks import AdapterRanks
from lora_lightning.studies.journal import Claim, TrialStatus
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.pruning import PRUNED, Pruning
from lora_lightning.studies.storage import StorageFailed
from lora_lightning.studies.trial_measurements import TestOutcomes, TrialCosts
from lora_lightning.studies.trial_progress import TrialProgress
from lora_lightning.studies.trial_runs import train_trial
from lora_lightning.studies.trials import Trial
from lora_lightning.studies.truncated_trials import TruncatedTests
from lora_lightning.training.fitting import DISK_ERRORS

WAIT = 1.0  # seconds between two looks for a trial while other workers have all that are left


@dataclass(frozen=True)
class TrialEnd:
    """How a trial of this worker ended.

    Attributes:
        trial: The trial.
        seconds: Of this worker.
    """

    trial: Trial
    seconds: float


class Worker:
    """Runs the trials of a study, one at a time.

    Args:
        study: The study.
        on_start: Called before each trial.
        on_end: Called after each trial.
    """

    def __init__(
        self,
        study: OpenStudy,
        *,
        on_start: Callable[[Trial], None] = lambda _: None,
        on_end: Callable[[TrialEnd], None] = lambda _: None,
    ) -> None:
        self.study, self.journal = study, study.journal
        self.on_start, self.on_end = on_start, on_end

    def run_all(self) -> dict[str, TrialStatus]:
        """Runs trials until none is left, also those of workers that are killed, and those that are added meanwhile.

        Returns:
            How each trial ended, by id.

        Raises:
            LoraLightningError: If the disk is full, or the journal cannot be read or written, which would fail every
                trial.
            TrainingStopped: After a signal. The trial is saved, and the next worker resumes it.
            KeyboardInterrupt: After Ctrl-C.
        """
        while True:
            self.study = self.study.refreshed()
            claim = self.study.claim_next()
            if claim is not None:
                self._run(claim)
            elif self.study.is_complete:
                return self.study.statuses()
            else:
                time.sleep(WAIT)

    def _run(self, claim: Claim) -> None:
        trial = claim.trial
        self.on_start(trial)
        start = time.monotonic()
        try:
            value, pruned = self._train(claim)
        except BaseException as failure:
            lost = lost_gpu(failure)
            if lost or not isinstance(failure, Exception) or is_no_fault_of_the_trial(failure):
                with suppress(LoraLightningError):  # a storage that is gone
                    self.journal.stop(claim, time.monotonic() - start)
                if lost is not None:
                    raise lost from failure
                raise  # the trial stays as it is, and the same command resumes it
            error = " ".join(str(failure).split()) or type(failure).__name__
            if not isinstance(failure, LoraLightningError):
                error = f"{type(failure).__name__}: {error}"
            self.journal.fail(claim, f"{error}{self._remedy(trial)}", time.monotonic() - start)
        else:
            self.journal.finish(claim, value, time.monotonic() - start, pruned=pruned)
        finally:
            claim.lock.release()
        self.on_end(TrialEnd(trial, time.monotonic() - start))

    def _remedy(self, trial: Trial) -> str:
        """What a failed run needs before it can be repeated: one that is finished is only read again."""
        run = self.study.folder.run(trial)
        return "" if how_it_finished(run) is None else f"; to train it again, delete its folder {run} first"

    def _train(self, claim: Claim) -> tuple[float, bool]:
        """Trains a trial, and returns the metric that decides and whether the search ended it early."""
        free_memory()
        trial, search = claim.trial, self.study.planned.study.search
        progress = TrialProgress(self.study.folder.progress(trial))
        costs = TrialCosts(lambda since: self.study.is_alone(trial, since))
        callbacks: list[Callback] = [costs, TestOutcomes(), AdapterRanks(), progress]
        if trial.is_tested and (ranks := self.study.planned.study.truncations.get(trial.configuration)):
            callbacks.append(TruncatedTests(ranks))
        if search is not None and search.pruning and trial.suggestion is not None:
            report = partial(self.journal.report, claim)
            callbacks.append(Pruning(self.study.validation_tag, report))
        with warnings.catch_warnings():  # each trial warns like a run of its own
            record = train_trial(self.study.planned, self.study.folder, trial, callbacks)
        value = objective_of(record, self.study.tag if trial.is_tested else self.study.validation_tag)
        return value, record.reason.startswith(PRUNED)


def free_memory() -> None:
    """Frees what earlier trials of this process left: models are in reference cycles, which only `gc` finds.

    Otherwise, the peak memory of a trial would depend on the trials before it.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def objective_of(record: RunRecord, tag: str) -> float:
    """Reads the metric that decides from a finished run.

    Args:
        record: The run.
        tag: The metric with its split.

    Returns:
        Its value.

    Raises:
        TrialsFailed: If the run has no such metric, for example because its rows left it undefined.
    """
    split, _, name = tag.partition("/")
    value = record.metrics.get(split, {}).get(name, math.nan)
    if not math.isfinite(value):
        msg = f"the run {record.folder} has no finite {tag}, which is undefined for its rows"
        raise TrialsFailed(msg)
    return value


def is_no_fault_of_the_trial(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that of a disk or of the study's storage, and would fail all trials."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, StorageFailed) or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def lost_gpu(error: BaseException) -> TrainingError | None:
    """Finds out whether an error has left this process without its GPU, so that every later trial would fail in it.

    After a device-side assertion or an illegal memory access CUDA refuses all further work of a process.

    Args:
        error: Why a trial failed.

    Returns:
        The error to end this worker with; `None` if the GPU still works, or if there is none.
    """
    if not isinstance(error, LoraLightningError | RuntimeError) or not torch.cuda.is_available():
        return None
    try:
        torch.ones(1, device="cuda").sum().item()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError:
        msg = f"CUDA refuses all further work of this process ({' '.join(str(error).split())}), so it stops before it "
        msg += (
            "fails the trials that are left; repeat the command, and if it happens again, look at the trial that was "
        )
        return TrainingError(msg + "running")
    return None


def check_all_finished(statuses: Sequence[tuple[Trial, TrialStatus]]) -> None:
    """Raises an error if trials failed.

    Args:
        statuses: All trials with their states.

    Raises:
        TrialsFailed: Names the first failed trial and its error.
    """
    failed = [(trial, status) for trial, status in statuses if status.state == "failed"]
    if failed:
        trial, status = failed[0]
        msg = f"{len(failed)} of {len(statuses)} trials failed, the first one ({trial.title}) because {status.error}"
        msg += "; fix the cause, and repeat them with --retry_failed, an option of the command that started the study"
        raise TrialsFailed(msg)
