"""`lora-lightning study`: passes its options to a subcommand."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lightning.cli import study_audit, study_compare, study_run, study_slurm, study_status, study_work
from lora_lightning.cli.sentence_parser import SentenceParser


@dataclass(frozen=True)
class Subcommand:
    """A subcommand of `study`.

    Attributes:
        help: What it does, in a line.
        epilog: Examples, and what the options do not say.
        add_options: Adds its options to a parser.
        run: Runs it with the parsed options.
    """

    help: str
    epilog: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Any]


SUBCOMMANDS = {
    "run": Subcommand(study_run.HELP, study_run.EPILOG, study_run.add_run_options, study_run.run_study_file),
    study_work.WORK: Subcommand(study_work.HELP, study_work.EPILOG, study_work.add_work_options, study_work.run_worker),
    "status": Subcommand(
        study_status.STATUS_HELP,
        study_status.STATUS_EPILOG,
        study_status.add_status_options,
        study_status.run_status,
    ),
    "report": Subcommand(
        study_status.REPORT_HELP,
        study_status.REPORT_EPILOG,
        study_status.add_report_options,
        study_status.run_report,
    ),
    "compare": Subcommand(
        study_compare.HELP, study_compare.EPILOG, study_compare.add_compare_options, study_compare.run_compare
    ),
    "slurm": Subcommand(study_slurm.HELP, study_slurm.EPILOG, study_slurm.add_slurm_options, study_slurm.run_slurm),
    "audit": Subcommand(study_audit.HELP, study_audit.EPILOG, study_audit.add_audit_options, study_audit.run_audit),
}


def run_study(arguments: Sequence[str]) -> Any:
    """Runs `lora-lightning study`.

    Args:
        arguments: The subcommand and its options.

    Returns:
        What the subcommand returns.

    Raises:
        LoraLightningError: If an option or a file is wrong.
    """
    options = build_study_parser().parse_args(list(arguments) or ["--help"])
    return SUBCOMMANDS[options.subcommand].run(options)


def build_study_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands."""
    parser = SentenceParser(
        prog="lora-lightning study",
        description="Compare configurations over several seeds, with verdicts that have a known error rate.",
        allow_abbrev=False,
    )
    subcommands = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        own = subcommands.add_parser(
            name,
            help=subcommand.help,
            description=f"{subcommand.help[0].upper()}{subcommand.help[1:]}.",
            epilog=subcommand.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        subcommand.add_options(own)
    return parser
