"""`lora-lightning export`: writes an adapter folder that is not bound to this machine."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.cli.sentence_parser import SentenceParser

if TYPE_CHECKING:
    from lora_lightning.backbones.base_model_id import NamedBase

DESCRIPTION = """\
Copy the adapter of a run into a folder that other machines can load: it names the base model by its id on the hub in
place of a folder of this machine. The hash of the weights that the adapter was trained on stays beside it.
"""
EPILOG = """\
examples, complete:
  lora-lightning fit --config configs/quickstart.yaml
  lora-lightning export lightning_logs/quickstart/version_0 --output adapter \\
      --base_model_id sentence-transformers/all-MiniLM-L6-v2

If the hub's cache on this machine has the model of that id, its weights must be those that the adapter was trained on.
Otherwise that is not checked, and the folder's README.md says so. `fit --base_model_id ID` writes the same at once, and
`merge` and `compress` write models and adapters that are checked against the trained one.
"""


def build_export_parser() -> SentenceParser:
    """Returns the parser of `export`."""
    parser = SentenceParser(
        prog="lora-lightning export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="RUN_OR_ADAPTER", type=Path, help="a run folder, whose adapter is copied, or a PEFT folder")
    add("--output", metavar="DIR", type=Path, required=True, help="the folder to write; must not exist")
    base = "the base model's id on the hub, such as org/name"
    add("--base_model_id", "--base-model-id", metavar="ID", required=True, help=base)
    other = "name ID even if its weights are known to be others"
    add("--allow_other_base", action="store_true", help=other)
    add("--overwrite", action="store_true", help="replace DIR")
    return parser


def run_export(arguments: Sequence[str]) -> "NamedBase":
    """Runs `lora-lightning export`.

    Args:
        arguments: Options of the command.

    Returns:
        The name of the base, and what is known of its equality.

    Raises:
        LoraLightningError: If an option or the adapter is wrong, or the folder cannot be written.
    """
    options = build_export_parser().parse_args(list(arguments) or ["--help"])
    from lora_lightning.artefacts import export_adapter  # noqa: PLC0415  # takes seconds, and --help should not

    base = export_adapter(
        options.source,
        options.output,
        base_model_id=options.base_model_id,
        allow_other_base=options.allow_other_base,
        overwrite=options.overwrite,
    )
    print(base.sentence)
    print(f"adapter for PEFT: {options.output}")
    return base
