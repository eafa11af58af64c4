"""`lora-lightning study status` and `study report`: how far a study is, and what it has found so far."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lora_lightning.cli.study_audit import WIDTH, printable_name
from lora_lightning.cli.study_output import describe_progress, report

if TYPE_CHECKING:
    from lora_lightning.studies.open_study import OpenStudy

STATUS_HELP = "show how many trials of a study are finished, running, waiting or failed"
STATUS_EPILOG = """\
example:
  lora-lightning study status lightning_logs/studies/ranks
"""
REPORT_HELP = "write the report of a study from the trials that are finished"
REPORT_EPILOG = """\
example:
  lora-lightning study report lightning_logs/studies/ranks

Writes report.html, analysis.json, results.csv and figures into DIR/report, or into the folder that --output names, in
place of those of an earlier report. DIR/recommended.yaml is the config of what is recommended, which `fit` trains as it
is. A report of an unfinished study says so.
"""
OUTPUT_HELP = "folder of the report (default: DIR/report, or DIR/study_report in the folder of a diagnosis)"
STATES = ("finished", "running", "interrupted", "waiting", "pruned", "failed")


def add_status_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study status`.

    Args:
        parser: The parser of the subcommand.
    """
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the study")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study report`.

    Args:
        parser: The parser of the subcommand.
    """
    add_status_options(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help=OUTPUT_HELP)


def run_report(options: argparse.Namespace) -> None:
    """Runs `lora-lightning study report`.

    Args:
        options: The parsed options.
    """
    from lora_lightning.studies.open_study import open_study  # noqa: PLC0415  # imports torch

    report(open_study(options.folder), options.output)


def run_status(options: argparse.Namespace) -> None:
    """Runs `lora-lightning study status`.

    Args:
        options: The parsed options.
    """
    from lora_lightning.cli.study_progress import StudyProgress, describe  # noqa: PLC0415  # imports torch
    from lora_lightning.studies.open_study import open_study  # noqa: PLC0415
    from lora_lightning.studies.study_run import budget_note  # noqa: PLC0415

    study = open_study(options.folder)
    plan = study.plan  # once: other workers may add trials
    statuses = study.journal.statuses(plan.trials)
    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("configuration")
    for state in STATES:
        table.add_column(state, justify="right")
    for each in plan.configurations:
        own = [
            str(statuses[trial.id].state)
            for trial in plan.trials
            if trial.configuration == each.name and trial.suggestion is None
        ]
        table.add_row(printable_name(each.name), *(str(own.count(state) or "") for state in STATES))
    if tried := [str(statuses[trial.id].state) for trial in plan.trials if trial.suggestion is not None]:
        table.add_row("runs of the search", *(str(tried.count(state) or "") for state in STATES))
    console.print(table)
    progress = StudyProgress(study)
    console.print(f"\n{describe_progress(study)}{_state_of(study) or progress.time_left()}")
    for trial, found in progress.running():
        console.print(printable_name(f"running: {trial.title}: {describe(found)}"))
    for trial in plan.trials:
        if statuses[trial.id].state == "failed":
            console.print(printable_name(f"failed: {trial.title}: {statuses[trial.id].error}"))
    if note := budget_note(study):
        console.print(note)


def _state_of(study: "OpenStudy") -> str:
    """Says that a study has nothing left to train; empty if it has, or if its budget left something out."""
    from lora_lightning.studies.journal import ENDED  # noqa: PLC0415
    from lora_lightning.studies.study_run import budget_note  # noqa: PLC0415

    states = [(trial, status.state) for trial, status in study.known_trials()]
    if not study.is_complete or any(state not in ENDED for _, state in states) or budget_note(study):
        return ""
    is_tested = any(trial.is_tested and state == "finished" for trial, state in states)
    return "; the study is complete" if is_tested else "; nothing is left to train, but nothing is tested"
