"""`lora-lightning plan`: prints what a training would need before any weights are downloaded or loaded."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lora_lightning.cli.sentence_parser import SentenceParser
from lora_lightning.errors import ConfigurationError
from lora_lightning.reports.study_json import json_text

if TYPE_CHECKING:
    from lora_lightning.planning import TrainingPlan
    from lora_lightning.planning.results import MemoryRow

WIDTH = 200  # at most, of tables: a narrow terminal wraps their lines
DESCRIPTION = """\
Show what a training would need, before any weights are downloaded or loaded: the modules that get an adapter, their
trainable parameters, the size of the adapter's file, what other ranks would take, and peak memory in float32, bf16,
int8 and NF4.
"""
EPILOG = """\
examples, complete:
  lora-lightning plan --config configs/quickstart.yaml
  lora-lightning plan --config configs/quickstart.yaml --model.lora.r 32 --memory 2GiB
  lora-lightning plan --config configs/causal_lm/llama_instructions_qlora.yaml --device cuda --memory 24GiB
  lora-lightning plan --config configs/glue/mnli_roberta_lora.yaml --num-labels 3 --output plan

Every option of `lora-lightning fit` works here, too. Of a backbone on the hub, only config.json is downloaded; a local
folder needs nothing but its config.json. The labels are counted in the data if it is there, else --num-labels says how
many there are.

--output writes plan.json, ranks.png and memory.png, and both figures as .svg.
"""


def build_plan_parser() -> SentenceParser:
    """Returns the parser of `plan`, without the options of `fit`."""
    parser = SentenceParser(
        prog="lora-lightning plan",
        usage="lora-lightning plan --config FIT.yaml [options of plan] [options of fit]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.takes_others = True
    add = parser.add_argument
    add("--device", metavar="DEVICE", default="cpu", help="where the training would run: cpu (default) or cuda")
    memory = "how much memory there is, such as 24GiB: says what fits, and the largest batch"
    add("--memory", metavar="SIZE", help=memory)
    precisions = "rows of the table of memory: all (default), config, or none, which takes a second"
    add("--precisions", metavar="WHICH", default="all", help=precisions)
    labels = "number of labels, if the data is not there"
    add("--num-labels", "--num_labels", metavar="N", type=int, help=labels)
    add("--output", metavar="DIR", type=Path, help="a folder to write numbers and figures to; must not exist")
    add("--overwrite", action="store_true", help="replace DIR if it holds another plan")
    add("--json", action="store_true", help="print all numbers as JSON instead of tables")
    return parser


def run_plan(arguments: Sequence[str]) -> "TrainingPlan":
    """Runs `lora-lightning plan`.

    Args:
        arguments: Options of the command.

    Returns:
        The plan.

    Raises:
        LoraLightningError: If an option is wrong or does not fit the architecture.
    """
    options, of_fit = build_plan_parser().parse_known_args(list(arguments) or ["--help"])
    _check_names(of_fit, [f"--{name}" for name in vars(options)])
    from lora_lightning.planning.plan import plan_from_arguments  # noqa: PLC0415  # seconds, and --help is quick

    plan = plan_from_arguments(
        of_fit,
        device=options.device,
        memory=options.memory,
        precisions=options.precisions,
        num_labels=options.num_labels,
        output=options.output,
        overwrite=options.overwrite,
    )
    if options.json:
        print(json_text(plan.as_json()))
    else:
        print_plan(plan)
        if options.output is not None:
            Console(highlight=False, markup=False, soft_wrap=True).print(f"plan: {options.output}")
    return plan


def _check_names(of_fit: Sequence[str], own: Sequence[str]) -> None:
    """Refuses a misspelt option of `plan`, which would otherwise be looked for among those of `fit`."""
    for word in of_fit:
        name = word.partition("=")[0]
        if name.startswith("--") and (close := get_close_matches(name, own, n=1, cutoff=0.85)):
            msg = f"plan has no option {name}; did you mean {close[0]}?"
            raise ConfigurationError(msg)


def print_plan(plan: "TrainingPlan") -> None:
    """Prints the tables of a plan.

    Args:
        plan: What to print.
    """
    from lora_lightning.planning.sizes import format_size  # noqa: PLC0415

    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    console.print(f"{plan.model} from {plan.backbone}\n")
    console.print(_modules_table(plan))
    share = f"{100 * plan.share:.3g} %; reduction against full fine-tuning: {plan.reduction:.3g}"
    console.print(f"\ntrainable parameters: {plan.trainable:,} of {plan.total:,} ({share})")
    what = "adapter file" if plan.r is not None else "model file"
    console.print(f"{what}: {format_size(plan.adapter_bytes)} ({plan.adapter_bytes:,} bytes of tensors)")
    if plan.ranks:
        console.print()
        console.print(_ranks_table(plan))
    if plan.memory:
        batch = plan.batch
        console.print(
            f"\npeak memory with batches of {batch.rows} rows of {batch.tokens} tokens, in validation "
            f"{batch.evaluation_rows} of {batch.evaluation_tokens}:"
        )
        console.print(_memory_table(plan))
    for note in plan.notes:
        console.print(f"note: {note}")


def _table(left: Sequence[str], right: Sequence[str], last: Sequence[str] = ()) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    for heading in last:
        table.add_column(heading)
    return table


def _modules_table(plan: "TrainingPlan") -> Table:
    table = _table(["module"], ["modules", "with adapter", "r", "trainable", "trainable per module", "all parameters"])
    for each in plan.modules:
        ranks = ", ".join(map(str, each.ranks)) or "in full"
        per_module = "" if each.trainable % each.modules else f"{each.trainable // each.modules:,}"
        counts = (str(each.modules), str(each.adapted), ranks, f"{each.trainable:,}")
        table.add_row(each.kind, *counts, per_module, f"{each.total:,}")
    return table


def _ranks_table(plan: "TrainingPlan") -> Table:
    from lora_lightning.planning.sizes import format_size  # noqa: PLC0415

    table = _table([], ["r", "trainable", "reduction", "share", "adapter file"], [""])
    for row in plan.ranks:
        remarks = ["as in the config"] if row.r == plan.r else []
        if row.full_rank_modules:
            remarks.append(f"r reaches the smaller side of {row.full_rank_modules} adapted modules")
        numbers = (f"{row.trainable:,}", f"{row.reduction:,.3g}", f"{100 * row.share:.3g} %")
        table.add_row(str(row.r), *numbers, format_size(row.adapter_bytes), "; ".join(remarks))
    return table


def _memory_table(plan: "TrainingPlan") -> Table:
    from lora_lightning.planning.sizes import format_size  # noqa: PLC0415

    parts = ("weights", "gradients", "optimizer", "activations", "overhead")
    more = [] if plan.memory_limit is None else [f"fits {format_size(plan.memory_limit)}", "largest batch"]
    title = f"peak, {plan.device}"
    table = _table(["precision"], [*parts, title, *more], ["peak in", "options"])
    for row in plan.memory:
        name = row.precision + (" (config)" if row.is_config else "")
        if row.unavailable:
            table.add_row(name, *[""] * (len(parts) + 1 + len(more)), "", row.unavailable)
            continue
        sizes = [format_size(getattr(row, part)) for part in parts]
        table.add_row(name, *sizes, format_size(row.peak), *_fit_cells(row), row.phase, row.options)
    return table


def _fit_cells(row: "MemoryRow") -> list[str]:
    if row.fits is None:
        return []
    return ["yes" if row.fits else "no", "none" if not row.largest_batch else str(row.largest_batch)]
