"""`lora-lightning allocate`: chooses the rank of each layer under a budget, and writes a partial config of `fit`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lora_lightning.cli.data_options import print_progress, split_data_options
from lora_lightning.cli.sentence_parser import SentenceParser
from lora_lightning.reports.study_json import json_text

if TYPE_CHECKING:
    from lora_lightning.artefacts.allocation import Allocation

WIDTH = 200  # at most, of tables: a narrow terminal wraps their lines
DESCRIPTION = """\
Choose the rank of each layer under a budget of trainable adapter parameters, by measurement: from the singular values
of a run's trained adapter, or, before training, from those of the gradients of the frozen weights over a few batches.
Writes a partial config for `fit`, and a picture of rank by layer and module beside it.
"""
EPILOG = """\
examples, complete:
  lora-lightning allocate --config configs/quickstart.yaml --budget r=8 --output ranks.yaml
  lora-lightning fit --config configs/quickstart.yaml --config ranks.yaml

  lora-lightning fit --config configs/quickstart.yaml --model.lora.r 32 --model.lora.lora_alpha 64
  lora-lightning allocate lightning_logs/quickstart/version_0 --budget r=8 --output ranks.yaml

a control: the same ranks, shuffled over the layers of the same shape
  lora-lightning allocate --config configs/quickstart.yaml --budget r=8 --output shuffled.yaml --shuffled 0

the budget counts the trainable parameters of adapters, not of the head. Every layer keeps at least rank 1, and its
scaling lora_alpha / r (lora_alpha / sqrt(r) with use_rslora), so its lora_alpha changes with its rank. By gradients a
layer gets at most 4 times the uniform rank of the budget; by a run at most the rank that it was trained with, so train
with a larger r than the budget's. Adapters on experts (target_parameters) and on embeddings are refused.

exit status 3, and nothing is written: all that was measured is zero.
"""


def build_allocate_parser() -> SentenceParser:
    """Returns the parser of `allocate`, without the options of data and model."""
    parser = SentenceParser(
        prog="lora-lightning allocate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, nargs="?", help="a run folder, whose trained adapter is measured")
    config = "a config of fit, whose gradients are measured; repeatable; --model.* and --data.* options override it"
    add("--config", metavar="FIT.yaml", action="append", default=[], help=config)
    budget = "trainable adapter parameters, such as 300000, or r=8 for as many as rank 8 takes in all layers"
    add("--budget", metavar="N", required=True, help=budget)
    add("--output", metavar="FILE.yaml", type=Path, required=True, help="the partial config to write; must not exist")
    add("--overwrite", action="store_true", help="replace FILE.yaml and its picture")
    add("--batches", metavar="NUMBER", type=int, help="training batches to measure gradients on (default: 8)")
    add("--shuffled", metavar="SEED", type=int, help="shuffle the ranks over layers of the same shape, as a control")
    add("--json", action="store_true", help="print all numbers as JSON instead of a table")
    return parser


def run_allocate(arguments: Sequence[str]) -> "Allocation":
    """Runs `lora-lightning allocate`.

    Args:
        arguments: Options of the command.

    Returns:
        The ranks.

    Raises:
        LoraLightningError: If an option, the run, the config or the budget is wrong.
    """
    words, overrides = split_data_options(arguments)
    options = build_allocate_parser().parse_args(words or ["--help"])
    from lora_lightning.artefacts import allocate  # noqa: PLC0415  # takes seconds, and --help should not

    allocation = allocate(
        options.run,
        budget=options.budget,
        output=options.output,
        config=options.config,
        overrides=overrides,
        batches=options.batches,
        shuffled=options.shuffled,
        overwrite=options.overwrite,
        report=print_progress,
    )
    if options.json:
        print(json_text(allocation.as_json()))
    else:
        print_allocation(allocation)
    return allocation


def print_allocation(allocation: "Allocation") -> None:
    """Prints the ranks and what they keep.

    Args:
        allocation: What was chosen.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("layer")
    for heading in ("rank", "lora_alpha", "parameters", "kept"):
        table.add_column(heading, justify="right")
    for layer in allocation.layers:
        cells = (f"{layer.rank}", f"{layer.alpha:g}", f"{layer.parameters:,}", f"{100 * layer.kept:.1f} %")
        table.add_row(layer.name, *cells)
    shuffled = "" if allocation.shuffled is None else f", shuffled with seed {allocation.shuffled}"
    console.print(f"ranks by {allocation.measured_by}{shuffled}\n")
    console.print(table)
    console.print(
        f"\ntrainable adapter parameters: {allocation.parameters:,} of a budget of {allocation.budget:,}\n"
        f"squared singular values kept: {100 * allocation.kept:.1f} % of those measured; r = {allocation.uniform} in "
        f"all layers keeps {100 * allocation.uniform_kept:.1f} %\n"
        f"picture: {allocation.picture}\n"
        f"train with it: lora-lightning fit --config BASE.yaml --config {allocation.output}"
    )
