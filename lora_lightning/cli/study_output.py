"""What the subcommands of `study` print: progress, results, and the plan of a dry run."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lora_lightning.cli.study_audit import WIDTH, print_audit, printable_name
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.trials import Trial

if TYPE_CHECKING:
    from lora_lightning.studies.estimate import StudyEstimate
    from lora_lightning.studies.journal import TrialStatus
    from lora_lightning.studies.open_study import OpenStudy
    from lora_lightning.studies.specification import Axis
    from lora_lightning.studies.study_folder import StudyFolder


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Progress]:
    """Shows a bar while it is needed, on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        bar.add_task(title, total=total)
        yield bar


def run_trials(study: "OpenStudy") -> dict[str, "TrialStatus"]:
    """Runs all trials that are left, prints a line for each, and on a terminal shows how far all of them are."""
    from lora_lightning.cli.study_progress import StudyProgress  # noqa: PLC0415
    from lora_lightning.studies.journal import ENDED  # noqa: PLC0415
    from lora_lightning.studies.study_run import budget_note  # noqa: PLC0415
    from lora_lightning.studies.worker import TrialEnd, Worker  # noqa: PLC0415

    console = Console(highlight=False, markup=False, soft_wrap=True)
    progress = StudyProgress(study)
    console.print(f"study folder: {study.folder.path}  ({describe_progress(study)})")

    ended = {name for name, status in study.statuses().items() if status.state in ENDED}

    def start(trial: Trial) -> None:
        progress.study = worker.study  # which may have gained trials
        console.print()
        console.print(printable_name(f"training {trial.title}{progress.time_left()}"))

    def end(found: TrialEnd) -> None:
        progress.measured.append(found.seconds)
        size = worker.study.plan.size
        for trial, status in worker.study.known_trials():  # also what other workers have ended meanwhile
            if status.state in ENDED and trial.id not in ended:
                ended.add(trial.id)
                tag = study.tag if trial.is_tested else study.validation_tag
                seconds = found.seconds if trial.id == found.trial.id else status.seconds
                line = f"{describe_end(trial, status, tag, seconds)} ({len(ended)} of {size})"
                console.print(printable_name(line))

    worker = Worker(study, on_start=start, on_end=end)
    with progress.shown_on(console):
        statuses = worker.run_all()
    if note := budget_note(worker.study):
        console.print(f"\n{note}")
    return statuses


def describe_progress(study: "OpenStudy") -> str:
    """Says how many trials of a study have ended, and how.

    Args:
        study: The study.
    """
    states = [status.state for status in study.statuses().values()]
    counts = [f"{states.count('finished') + states.count('pruned')} of {study.plan.size} trials are finished"]
    if pruned := states.count("pruned"):
        counts.append(f"of which the search ended {pruned} early")
    if failed := states.count("failed"):
        counts.append(f"{failed} failed")
    return ", ".join(counts)


def describe_end(trial: Trial, status: "TrialStatus", tag: str, seconds: float | None) -> str:
    """Says how a trial ended.

    Args:
        trial: The trial.
        status: Its state.
        tag: The metric that decides, with its split.
        seconds: That it took, if that is known.
    """
    if status.value is None:
        return f"failed:  {trial.title}: {status.error}"
    time = "" if seconds is None else f", {shown_time(seconds)}"
    early = ", ended early by the search" if status.state == "pruned" else ""
    return f"done:    {trial.title}: {tag} {status.value:.4f}{early}{time}"


def print_timings(study: "OpenStudy") -> list[tuple[Trial, str]]:
    """Times the trials of a study, and prints a line for each.

    Returns:
        The trials that have no times, each with the reason.
    """
    from lora_lightning.studies.trial_timings import time_trials  # noqa: PLC0415

    console = Console(highlight=False, markup=False, soft_wrap=True)
    problems: list[tuple[Trial, str]] = []

    def end(trial: Trial, times: dict[str, float], problem: str) -> None:
        if not times:
            problems.append((trial, problem))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in times.items())
        console.print(printable_name(f"timed:   {trial.title}: {shown or f'no times, because {problem}'}"))

    console.print("\ntiming the trials, one at a time")
    time_trials(study, end)
    return problems


def report(study: "OpenStudy", output: Path | None = None) -> None:
    """Prints the verdicts, and writes the report and the recommended config.

    Raises:
        ConfigurationError: If no trial is finished and tested.
    """
    from lora_lightning.studies.api import report_study  # noqa: PLC0415

    found = report_study(study, output)
    print()
    print_audit(found.audit)
    for note in found.audit.notes:
        print(printable_name(f"note: {note}"))
    print(f"\nreport:      {found.page}")
    print(f"all trials:  {found.table}, {found.table.with_suffix('.parquet').name}")
    if found.recommended is not None:
        print(f"recommended: {found.recommended}  (lora-lightning fit --config {found.recommended})")
    print(f"curves:      tensorboard --logdir {study.folder.path}")


def print_plan(
    plan: StudyPlan, folder: "StudyFolder", estimate: "StudyEstimate", workers: int, *, retry_failed: bool = False
) -> None:
    """Prints what a study will train.

    Args:
        plan: The study.
        folder: Its folder, which may not exist.
        estimate: What a run takes.
        workers: Number of processes that share the runs.
        retry_failed: Whether runs that failed will be repeated.
    """
    from lora_lightning.cli.study_runs_left import count_runs  # noqa: PLC0415  # imports torch

    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("configuration")
    table.add_column("options")
    table.add_column("runs", justify="right")
    for each in plan.configurations:
        options = ", ".join(f"{name}={value}" for name, value in each.options.items())
        name = f"{each.name} (reference)" if each.name == plan.reference else each.name
        runs = len(plan.study.seeds) if plan.study.search else plan.runs_of(each.name)
        table.add_row(printable_name(name), printable_name(options), str(runs))
    if plan.study.search is not None:
        table.add_row("the winner", ", ".join(map(shown_axis, plan.study.axes)), str(len(plan.study.seeds)))
    console.print(table)
    left = count_runs(plan, folder, retry_failed=retry_failed)
    console.print(f"\n{printable_name(f'{left.description}, in {folder.path}')}")
    if estimate.why_unknown:
        console.print(printable_name(f"time and disk are unknown: {estimate.why_unknown}"))
        return
    several = f" of one worker; {workers} share them" if workers > 1 else ""
    basis = f"{estimate.measured_steps} of the {estimate.steps} steps of {plan.reference} were measured"
    time, size = (
        left.multiplied(estimate.seconds, shown_time),
        left.multiplied(estimate.bytes, shown_size),
    )
    console.print(printable_name(f"time: {time}{several} ({basis})"))
    console.print(
        printable_name(f"disk: {size}, if each run takes the {shown_size(estimate.bytes)} of {plan.reference}")
    )


def shown_axis(axis: "Axis") -> str:
    """Formats what a search varies, such as `learning_rate: 0.0001 to 0.003`."""
    if axis.range is None:
        return printable_name(f"{axis.short_name}: {', '.join(axis.values)}")
    return f"{axis.short_name}: {axis.range.low:g} to {axis.range.high:g}"


def shown_size(size: float) -> str:
    """Formats a number of bytes, such as `1.2 GB` or `34 MB`."""
    if size < 1e9:  # noqa: PLR2004
        return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"  # noqa: PLR2004
    return f"{size / 1e9:,.1f} GB"


def shown_time(seconds: float) -> str:
    """Formats a duration, such as `42 s`, `12 min` or `3.5 h`."""
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Prints a warning of several trials once: most are about the data, which the trials share."""
    printed: set[str] = set()
    with warnings.catch_warnings():
        print_warning = warnings.showwarning

        def print_new_warning(message: Warning | str, *where: Any) -> None:
            if str(message) not in printed:
                printed.add(str(message))
                print_warning(message, *where)

        warnings.showwarning = print_new_warning  # type: ignore[assignment]  # takes any arguments
        yield
