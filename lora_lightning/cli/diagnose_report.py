"""`lora-lightning diagnose report`: what a diagnosis has found so far."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_lightning.cli.study_audit import WIDTH, printable_name

if TYPE_CHECKING:
    from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
    from lora_lightning.diagnosis.findings import Findings
    from lora_lightning.diagnosis.specification import Diagnosis
    from lora_lightning.studies.open_study import OpenStudy

HELP = "write the report of a diagnosis from the runs that are finished and what was measured"
EPILOG = """\
example:
  lora-lightning diagnose report lightning_logs/diagnoses/minilm_clinc150

Trains and measures nothing. Writes report.html and figures, diagnosis.json with all numbers, and skip_modules.yaml. A
report of an unfinished diagnosis says what is missing.

exit status: 3 if a verdict in `require` is not reached
"""


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `diagnose report`.

    Args:
        parser: The parser of the subcommand.
    """
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the diagnosis")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (default: DIR/report)")


def run_report(options: argparse.Namespace) -> "Findings":
    """Runs `lora-lightning diagnose report`.

    Args:
        options: The parsed options.

    Returns:
        What was found.

    Raises:
        LoraLightningError: If the folder has no diagnosis, or no finished run of a precision.
        VerificationError: If a required verdict is not reached.
    """
    from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder  # noqa: PLC0415  # imports torch
    from lora_lightning.diagnosis.findings import check_required  # noqa: PLC0415
    from lora_lightning.studies.open_study import open_study  # noqa: PLC0415

    folder = DiagnosisFolder(options.folder)
    diagnosis = folder.load()
    findings = report_findings(diagnosis, folder, open_study(options.folder), options.output)
    check_required(diagnosis, findings)
    return findings


def report_findings(
    diagnosis: "Diagnosis", folder: "DiagnosisFolder", study: "OpenStudy", output: Path | None = None
) -> "Findings":
    """Prints the verdicts, and writes the files.

    Args:
        diagnosis: The diagnosis.
        folder: Its folder.
        study: Its study.
        output: Folder of the report; `None` for the one in its folder.

    Returns:
        What was found.
    """
    from lora_lightning.diagnosis.findings import collect_findings  # noqa: PLC0415
    from lora_lightning.diagnosis.report import write_report  # noqa: PLC0415
    from lora_lightning.diagnosis.results_files import write_findings, write_skip_list  # noqa: PLC0415
    from lora_lightning.studies.study_folder import REPORT  # noqa: PLC0415
    from lora_lightning.studies.trial_table import TABLE, write_trial_table  # noqa: PLC0415

    findings = collect_findings(diagnosis, folder, study)
    with folder.study.locked():  # workers that end together write the same files
        page = write_report(findings, output or folder.path / REPORT)
        numbers = write_findings(findings, folder.path)
        skips = write_skip_list(findings, folder.path)
        write_trial_table(study.plan, folder.study, study.statuses())
    print_findings(findings)
    print(f"\nreport:      {page}")
    print(f"all numbers: {numbers}")
    print(f"all trials:  {folder.path / TABLE}.csv, {TABLE}.parquet")
    if skips is not None:
        print(f"skip list:   {skips}")
    return findings


def print_findings(findings: "Findings") -> None:
    """Prints verdicts, advice, what is not decided, failure modes and notes.

    Args:
        findings: What was found.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    full, quantized = findings.precisions

    def show(title: str, lines: list[str]) -> None:
        if lines:
            console.print(f"\n{title}")
            for line in lines:
                console.print(printable_name(f"- {line}"))

    show("verdicts", [f"{each.name}: {each.state}. {each.sentence}" for each in findings.verdicts])
    show(f"use {quantized} when", list(findings.advice.use_quantized))
    show(f"use {full} when", list(findings.advice.use_full))
    show(f"if you use {quantized}", list(findings.advice.if_quantized))
    of_verdicts = {each.sentence for each in findings.verdicts}  # which are printed with their states
    show("not decided", [each for each in findings.advice.missing if each not in of_verdicts])
    failures = [
        f"{each.name}: {each.symptom} ({each.evidence}); {each.cause}; {each.remedy}." for each in findings.failures
    ]
    show("failure modes", failures)
    show("notes", list(findings.notes))
