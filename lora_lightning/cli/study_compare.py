"""`lora-lightning study compare`: compares a configuration of one study with one of another."""

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.cli.study_audit import print_audit
from lora_lightning.reports.study_json import json_text, study_as_json

if TYPE_CHECKING:
    from lora_lightning.studies.audit import StudyAudit

HELP = "compare a configuration of one study with one of another"
EPILOG = """\
example:
  lora-lightning study run configs/studies/rank_quickstart.yaml
  lora-lightning study run configs/studies/rank_quickstart.yaml --set model.lora.use_rslora=true --save_dir rslora
  lora-lightning study compare lightning_logs/studies/rank_quickstart rslora/rank_quickstart \\
      --configurations "r = 8" "r = 8"

A is the reference, B is judged. Without --configurations, the reference of each study is compared, or the winner of a
search. Runs are paired by seed and by test example; both studies must be decided by the same metric and have the same
test data. Seeds that only one side has are left out, and counted in a warning.

A configuration that was chosen because of its test results has an advantage that the verdict does not know.
"""


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study compare`.

    Args:
        parser: The parser of the subcommand.
    """
    add = parser.add_argument
    add("reference", metavar="A", type=Path, help="folder of the study with the reference")
    add("other", metavar="B", type=Path, help="folder of the study that is judged; may be the same")
    names = "a configuration of each study (default: its reference, or the winner of a search)"
    add("--configurations", nargs=2, metavar=("NAME_A", "NAME_B"), help=names)
    add(
        "--margin",
        type=float,
        metavar="NUMBER",
        help="largest loss that does not matter (default: that of the studies)",
    )
    add("--json", action="store_true", help="print all numbers as JSON instead of tables")


def run_compare(options: argparse.Namespace) -> "StudyAudit":
    """Runs `lora-lightning study compare`.

    Args:
        options: The parsed options.

    Returns:
        The verdict.
    """
    from lora_lightning.studies.comparison import compare_studies  # noqa: PLC0415  # imports torch

    audit = compare_studies(options.reference, options.other, options.configurations, margin=options.margin)
    for note in audit.notes:
        warnings.warn(note, stacklevel=2)
    if options.json:
        print(json_text(study_as_json(audit.results, audit.analysis, audit.notes)))
    else:
        print_audit(audit)
    return audit
