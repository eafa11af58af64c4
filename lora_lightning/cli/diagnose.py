"""`lora-lightning diagnose`: LoRA against QLoRA, trained, measured and judged."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lightning.cli import diagnose_report, diagnose_run
from lora_lightning.cli.sentence_parser import SentenceParser


@dataclass(frozen=True)
class Subcommand:
    """A subcommand of `diagnose`.

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
    "run": Subcommand(
        diagnose_run.HELP, diagnose_run.EPILOG, diagnose_run.add_run_options, diagnose_run.run_diagnosis_file
    ),
    "report": Subcommand(
        diagnose_report.HELP,
        diagnose_report.EPILOG,
        diagnose_report.add_report_options,
        diagnose_report.run_report,
    ),
}


def run_diagnose(arguments: Sequence[str]) -> Any:
    """Runs `lora-lightning diagnose`.

    Args:
        arguments: The subcommand and its options.

    Returns:
        What the subcommand returns.

    Raises:
        LoraLightningError: If an option or a file is wrong.
    """
    options = build_diagnose_parser().parse_args(list(arguments) or ["--help"])
    return SUBCOMMANDS[options.subcommand].run(options)


def build_diagnose_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands."""
    parser = SentenceParser(
        prog="lora-lightning diagnose",
        description="Compare LoRA with QLoRA: what quantizing the base changes, what it costs, and when it pays.",
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
