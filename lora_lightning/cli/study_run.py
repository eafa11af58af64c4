"""`lora-lightning study run`: trains every configuration with every seed, or shows what it would train."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lora_lightning.cli.study_audit import WIDTH, print_audit, printable_name
from lora_lightning.errors import ConfigurationError, TrainingStopped
from lora_lightning.studies.plan import StudyPlan, Trial

if TYPE_CHECKING:
    from lora_lightning.studies.estimate import StudyEstimate
    from lora_lightning.studies.journal import TrialStatus
    from lora_lightning.studies.study_run import OpenStudy

WORK, WORK_HELP = "work", "train trials of a study that `study run` has started, here or on another machine"
WORK_EPILOG = """\
example:
  lora-lightning study work lightning_logs/studies/ranks

Run it in the working directory of `study run`, because paths in the base config are relative to it. It ends when no
trial is left, and also runs the trials of workers that were killed meanwhile.
"""
MOST_WORKERS = 256
HELP = "train every configuration with every seed, and report which one to use"
EPILOG = """\
example, complete (a minute on a CPU core, without network):
  cat > ranks.yaml << END
  base:
    model:
      class_path: PlantedRankTask
      init_args:
        problem: {in_features: 64, out_features: 48, ranks: [1, 2, 4, 8]}
        lora: {r: 16, lora_alpha: 16, lora_dropout: 0.0, target_modules: all-linear}
        optimization: {learning_rate: 0.01, weight_decay: 0.0}
    data:
      class_path: PlantedRankDataModule
      init_args: {in_features: 64}
    trainer: {max_epochs: 5}
    checkpoint: {monitor: val/loss, mode: min}
  axes:
    model.lora.r: [4, 8, 16]
  derived:
    model.lora.lora_alpha: r
  seeds: [0, 1, 2]
  objective: loss
  margin: 0.1
  reference: {r: 16}
  END
  lora-lightning study run ranks.yaml --dry-run
  lora-lightning study run ranks.yaml

The same command resumes a study that was stopped or killed, from the last checkpoint of each run. A YAML that has
gained values or seeds adds their runs; one that contradicts the study in the folder is refused.

exit status: 0 all trials are done, 3 some failed, 75 or 130 stopped; the same command resumes
"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study run`.

    Args:
        parser: The parser of the subcommand.
    """
    add = parser.add_argument
    add("study", metavar="STUDY.yaml", type=Path, help="the study: base config, axes, seeds, objective, reference")
    add("--base", action="append", default=[], type=Path, metavar="CONFIG", help="base config in place of the study's")
    add(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="check everything, and print the plan, its time and its disk",
    )
    setting = "an option of fit for all runs, such as data.data_dir=FOLDER; may be repeated"
    add("--set", action="append", default=[], dest="settings", metavar="OPTION=VALUE", help=setting)
    workers = "processes that train at the same time; the processor's cores are divided among them (default: 1)"
    add("--workers", type=int, default=1, metavar="N", help=workers)
    add("--retry_failed", action="store_true", help="run trials that failed once more")
    default = "lightning_logs/studies"
    add(
        "--save_dir",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help=f"folder of all studies (default: {default})",
    )


def run_study_file(options: argparse.Namespace) -> object:
    """Runs `lora-lightning study run`.

    Args:
        options: The parsed options.

    Returns:
        The state of each trial by id, or the plan after `--dry-run`.

    Raises:
        LoraLightningError: If the study is wrong, or the disk is full.
        TrialsFailed: If trials failed.
        TrainingStopped: After a signal.
        KeyboardInterrupt: After Ctrl-C.
    """
    from lora_lightning.studies.plan import plan_study  # noqa: PLC0415
    from lora_lightning.studies.study_file import read_study_file  # noqa: PLC0415
    from lora_lightning.studies.study_folder import StudyFolder  # noqa: PLC0415

    if not 1 <= options.workers <= MOST_WORKERS:
        msg = f"--workers is {options.workers}, but it must be in [1, {MOST_WORKERS}]"
        raise ConfigurationError(msg)
    for base in options.base:
        if not base.is_file():
            msg = f"there is no base config {base}; check the path"
            raise ConfigurationError(msg)
    plan = plan_study(read_study_file(options.study, options.base, options.settings))
    folder = StudyFolder(options.save_dir / plan.study.name)
    from lora_lightning.studies import study_run  # noqa: PLC0415  # seconds, which a wrong YAML need not wait for

    with progress_bar("checking configurations", len(plan.configurations)) as bar:
        checked = study_run.check_study(plan, folder, lambda _: bar.advance(bar.task_ids[0]))
    if options.dry_run:
        print_plan(plan, folder.path, study_run.estimate_study(plan, checked), options.workers)
        return plan
    study = study_run.start_study(plan, folder, checked, retry_failed=options.retry_failed)
    command = ["lora-lightning", "study", "run", str(options.study), *_words(options)]
    with resume_hint(command), further_workers(folder.path, options.workers - 1):
        statuses = run_trials(study)
    report(study)
    from lora_lightning.studies.worker import check_all_finished  # noqa: PLC0415

    check_all_finished([(trial, statuses[trial.id]) for trial in study.plan.trials])
    return statuses


def _words(options: argparse.Namespace) -> list[str]:
    words = [f"--base={base}" for base in options.base] + [f"--set={setting}" for setting in options.settings]
    words += [f"--workers={options.workers}"] if options.workers > 1 else []
    return words + ([f"--save_dir={options.save_dir}"] if str(options.save_dir) != "lightning_logs/studies" else [])


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


@contextmanager
def further_workers(folder: Path, count: int) -> Iterator[None]:
    """Starts other workers of a study, and ends when all have ended. They stop if this process does.

    Args:
        folder: The study's folder.
        count: Number of workers beside this process.
    """
    if not count:
        yield
        return
    import torch  # noqa: PLC0415

    threads = max(1, (os.cpu_count() or 1) // (count + 1))
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    command = [sys.executable, "-m", "lora_lightning", "study", WORK, str(folder)]
    workers = [subprocess.Popen(command, env=environment) for _ in range(count)]  # noqa: S603  # our own program
    try:
        yield
    except BaseException:
        for worker in workers:
            worker.terminate()  # finishes the step, and saves it
        raise
    finally:
        for worker in workers:
            worker.wait()


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study work`.

    Args:
        parser: The parser of the subcommand.
    """
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the study")


def run_worker(options: argparse.Namespace) -> object:
    """Runs `lora-lightning study work`: trains trials of a study that `study run` has started, on any machine.

    Args:
        options: The parsed options.

    Returns:
        The state of each trial by id.

    Raises:
        LoraLightningError: If the folder has no study, or the disk is full.
        TrainingStopped: After a signal.
        KeyboardInterrupt: After Ctrl-C.
    """
    from lora_lightning.studies.study_run import open_study  # noqa: PLC0415  # imports torch

    with resume_hint(["lora-lightning", "study", WORK, str(options.folder)]):
        return run_trials(open_study(options.folder))


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Progress]:
    """Shows a bar while it is needed, on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        bar.add_task(title, total=total)
        yield bar


def run_trials(study: "OpenStudy") -> dict[str, "TrialStatus"]:
    """Runs all trials that are left, and prints a line for each."""
    from lora_lightning.studies.worker import TrialEnd, Worker  # noqa: PLC0415

    console = Console(highlight=False, markup=False, soft_wrap=True)
    total = study.plan.size
    done = sum(status.state == "finished" for status in study.statuses().values())
    console.print(f"study folder: {study.folder.path}  ({done} of {total} trials are finished)")
    seconds: list[float] = []

    def start(trial: Trial) -> None:
        left = ""
        if seconds:
            states = [status.state for status in study.statuses().values()]
            remaining = total - sum(state in {"finished", "failed"} for state in states)
            time_left = remaining * sum(seconds) / len(seconds) / max(1, states.count("running"))
            left = f"; about {shown_time(time_left)} left"
        console.print()
        console.print(printable_name(f"training {trial.title}{left}"))

    def end(found: TrialEnd) -> None:
        if found.value is None:
            console.print(printable_name(f"failed:  {found.trial.title}: {found.error}"))
            return
        seconds.append(found.seconds)
        ended = sum(status.state in {"finished", "failed"} for status in study.statuses().values())
        tag = study.tag if found.trial.rate is None else study.validation_tag
        result = f"{tag} {found.value:.4f}, {shown_time(found.seconds)}"
        console.print(printable_name(f"done:    {found.trial.title}: {result} ({ended} of {total})"))

    return Worker(study, on_start=start, on_end=end).run_all()


def report(study: "OpenStudy", output: Path | None = None) -> None:
    """Prints the verdicts, and writes the report and the recommended config."""
    from lora_lightning.reports.study_report import write_study_report  # noqa: PLC0415
    from lora_lightning.studies.study_folder import REPORT  # noqa: PLC0415
    from lora_lightning.studies.study_run import judge_study, write_recommendation  # noqa: PLC0415

    statuses = study.statuses()
    if not any(statuses[trial.id].state == "finished" for trial in study.plan.tested):
        return
    audit = judge_study(study)
    with study.folder.locked():  # workers that end together write the same files
        page = write_study_report(audit.results, audit.analysis, output or study.folder.path / REPORT, audit.notes)
        config = write_recommendation(study, audit)
    print()
    print_audit(audit)
    for note in audit.notes:
        print(printable_name(f"note: {note}"))
    print(f"\nreport:      {page}")
    if config is not None:
        print(f"recommended: {config}  (lora-lightning fit --config {config})")
    print(f"curves:      tensorboard --logdir {study.folder.path}")


def print_plan(plan: StudyPlan, folder: Path, estimate: "StudyEstimate", workers: int) -> None:
    """Prints what a study will train.

    Args:
        plan: The study.
        folder: Its folder.
        estimate: What a run takes.
        workers: Number of processes that share the runs.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("configuration")
    table.add_column("options")
    table.add_column("runs", justify="right")
    for each in plan.configurations:
        options = ", ".join(f"{name}={value}" for name, value in each.options.items())
        name = f"{each.name} (reference)" if each.name == plan.reference else each.name
        runs = plan.size // len(plan.configurations)
        table.add_row(printable_name(name), printable_name(options), str(runs))
    console.print(table)
    runs = plan.size
    rates = plan.study.learning_rate
    tried = "" if rates is None else f" ({runs - len(plan.study.seeds) * len(plan.configurations)} try learning rates)"
    console.print(f"\n{runs} runs{tried}, in {folder}")
    if estimate.why_unknown:
        console.print(printable_name(f"time and disk are unknown: {estimate.why_unknown}"))
        return
    several = f" of one worker; {workers} share them" if workers > 1 else ""
    basis = f"{estimate.measured_steps} of the {estimate.steps} steps of {plan.reference} were measured"
    console.print(f"time: about {shown_time(runs * estimate.seconds)}{several} ({basis})")
    console.print(f"disk: about {runs * estimate.bytes / 1e6:,.0f} MB")


def shown_time(seconds: float) -> str:
    """Formats a duration, such as `42 s`, `12 min` or `3.5 h`."""
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004
