"""`lora-lightning study work`: a worker of a study, and those that `study run` starts beside itself."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.cli.study_output import each_warning_once, progress_bar, report, run_trials
from lora_lightning.errors import ConfigurationError, ExitStatus, TrainingStopped

if TYPE_CHECKING:
    from lora_lightning.studies.open_study import OpenStudy

ENDS = (ExitStatus.DONE, ExitStatus.CHECK_FAILED)  # nothing is left to run; some trials may have failed
STOPS = (ExitStatus.STOPPED, ExitStatus.INTERRUPTED)
VISIBLE = "CUDA_VISIBLE_DEVICES"
BESIDE = "--beside"  # of workers that `study run` starts, which writes the report itself
WORK, HELP = "work", "train trials of a study that `study run` has started, here or on another machine"
EPILOG = """\
example:
  lora-lightning study work lightning_logs/studies/ranks

Run it in the working directory of `study run`, because paths in the base config are relative to it, on a machine with
the packages and base models of all configurations; otherwise it ends before it begins a trial. It ends when no trial is
left, also runs the trials of workers that were killed meanwhile, and writes the report as `study run` does; in the
folder of a diagnosis, `diagnose run` does.

exit status: 0 all trials are done, 3 some failed or were not started because the budget is spent, 75 or 130 stopped;
the same command resumes
"""


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study work`.

    Args:
        parser: The parser of the subcommand.
    """
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the study")
    parser.add_argument(BESIDE, action="store_true", dest="is_beside", help=argparse.SUPPRESS)


def run_worker(options: argparse.Namespace) -> object:
    """Runs `lora-lightning study work`: trains trials of a study that `study run` has started, on any machine.

    Args:
        options: The parsed options.

    Returns:
        The state of each trial by id.

    Raises:
        LoraLightningError: If the folder has no study, this process cannot train one of its configurations, or the disk
            is full.
        TrialsFailed: If trials failed, be it here or on another machine, or were not started because the budget is
            spent.
        TrainingStopped: After a signal.
        KeyboardInterrupt: After Ctrl-C.
    """
    from lora_lightning.studies.open_study import open_study  # noqa: PLC0415  # imports torch
    from lora_lightning.studies.study_run import check_budget_sufficed  # noqa: PLC0415
    from lora_lightning.studies.trial_runs import check_worker  # noqa: PLC0415
    from lora_lightning.studies.worker import check_all_finished  # noqa: PLC0415

    with each_warning_once(), resume_hint(["lora-lightning", "study", WORK, str(options.folder)]):
        study = open_study(options.folder)
        if not study.is_complete and not options.is_beside:  # `study run` has checked beside itself
            left = study.configurations_left
            with progress_bar("checking configurations", len(left)) as bar:
                check_worker(study.planned, study.folder, left, lambda _: bar.advance(bar.task_ids[0]))
        statuses = run_trials(study)
    study = study.refreshed()  # another process may have added seeds or values meanwhile
    ended = study.known_trials()
    if any(status.state == "finished" and trial.is_tested for trial, status in ended):
        _report(study, is_beside=options.is_beside)
    check_all_finished(ended)
    check_budget_sufficed(study)
    return statuses


def _report(study: "OpenStudy", *, is_beside: bool) -> None:
    """Writes the report of a study that has ended, or says which command does: an older one lacks these runs."""
    if study.folder.is_of_diagnosis:
        print("\nthe diagnosis and its report are written by `lora-lightning diagnose run`; repeat it")
    elif is_beside:
        print(
            "\nthe report is written by the `study run` that started this worker; if that was killed, write it with: "
            f"{shlex.join(['lora-lightning', 'study', 'report', str(study.folder.path)])}"
        )
    else:
        report(study)


@contextmanager
def resume_hint(command: list[str]) -> Iterator[None]:
    """Says how to resume a study that is stopped."""
    hint = f"resume with: {shlex.join(command)}"
    try:
        yield
    except TrainingStopped as stop:
        stop.resume_hint = hint
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None


def check_devices(count: int, device: int) -> None:
    """Refuses further workers if runs ask for another GPU than the first one: each worker sees only one.

    Args:
        count: Number of workers, with `study run` itself.
        device: The largest index of a GPU that a configuration asks for.

    Raises:
        ConfigurationError: Says how to choose GPUs.
    """
    if count > 1 and device:
        msg = (
            f"trainer.devices asks for the GPU {device}, but --workers {count} gives each worker one GPU, in turn; set "
        )
        msg += f"trainer.devices to 1, and list the GPUs to use in {VISIBLE}"
        raise ConfigurationError(msg)


@contextmanager
def further_workers(folder: Path, count: int) -> Iterator[None]:
    """Starts other workers of a study, and ends when all have ended. They stop if this process does.

    What they print goes to files, since several processes cannot share a terminal with a progress bar.

    Args:
        folder: The study's folder.
        count: Number of workers beside this process.
    """
    if not count:
        yield
        return
    import torch  # noqa: PLC0415
    from lightning.pytorch.utilities import rank_zero_warn  # noqa: PLC0415

    threads = max(1, (os.cpu_count() or 1) // (count + 1))
    own_threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, own_threads))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    gpus = visible_gpus(os.environ, torch.cuda.device_count())
    command = [sys.executable, "-m", "lora_lightning", "study", WORK, str(folder), BESIDE]
    logs = [folder / f"worker_{number}.log" for number in range(2, count + 2)]
    print(f"other workers print to: {', '.join(map(str, logs))}", flush=True)
    workers = [
        start_worker(command, environment | own_gpu(gpus, number), log) for number, log in enumerate(logs, start=1)
    ]
    is_stopping = False
    try:
        yield
    except BaseException:
        is_stopping = True
        for worker in workers:
            worker.terminate()  # finishes the step, and saves it
        raise
    finally:
        torch.set_num_threads(own_threads)
        for worker, log in zip(workers, logs, strict=True):
            if warning := describe_early_end(worker.wait(), log, is_stopping=is_stopping):
                rank_zero_warn(warning)


def describe_early_end(status: int, log: Path, *, is_stopping: bool) -> str:
    """Says that a worker ended before the study did.

    Args:
        status: Its exit status; negative if a signal killed it.
        log: What it printed.
        is_stopping: Whether this process has stopped it.

    Returns:
        A warning; empty if the worker ended as it should.
    """
    if status in ENDS or (is_stopping and status in {*STOPS, -signal.SIGTERM, -signal.SIGINT}):
        return ""
    if is_stopping:
        return f"a worker ended with exit status {status} instead of saving its step; see {log}."
    return f"a worker ended early with exit status {status}; see {log}. Other workers ran its trials."


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """Lists the GPUs of this process by the names that `CUDA_VISIBLE_DEVICES` takes.

    Args:
        environment: Environment variables.
        count: Number of GPUs that PyTorch sees.
    """
    names = [name for name in environment.get(VISIBLE, "").split(",") if name]
    return names[:count] or [str(number) for number in range(count)]


def own_gpu(gpus: Sequence[str], number: int) -> dict[str, str]:
    """Gives a worker one GPU, in turn. `study run` itself trains on the first one.

    Args:
        gpus: As from `visible_gpus`.
        number: Of the worker; that of `study run` is 0.

    Returns:
        The environment variable that does so; empty without GPUs.
    """
    return {VISIBLE: gpus[number % len(gpus)]} if gpus else {}


def start_worker(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a worker.

    Args:
        command: The command.
        environment: Its environment variables.
        log: A file for what it prints.

    Returns:
        The process.
    """
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)  # noqa: S603  # our own program
