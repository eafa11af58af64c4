"""`lora-lightning compress`: writes an adapter at the least rank that is enough, and prints how that was decided."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from lora_lightning.cli.data_options import print_progress, split_data_options
from lora_lightning.cli.sentence_parser import SentenceParser
from lora_lightning.errors import ConfigurationError
from lora_lightning.reports.study_json import json_text

if TYPE_CHECKING:
    from lora_lightning.artefacts.compress_results import CompressResult, RankMeasurement

WIDTH = 200  # at most, of tables: a narrow terminal wraps their lines
DESCRIPTION = """\
Truncate a run's adapter to the least rank that is enough, and write it as a PEFT folder. Each update is truncated by
its singular value decomposition; ranks are tested on validation data, from the largest down, until one is not proven to
be at most a margin worse than the full adapter. The folder is loaded again, and the verdict is checked on test data. It
is about this adapter, not about training at that rank.
"""
EPILOG = """\
examples, complete:
  lora-lightning fit --config configs/quickstart.yaml --model.lora.r 16 --model.lora.lora_alpha 32
  lora-lightning compress lightning_logs/quickstart/version_0 --output compressed --margin 2
  cat compressed/README.md    (says how to load the adapter, and shows the table of all ranks)

  lora-lightning compress RUN --output compressed --trained_at_k OTHER_RUN    (beside a run that was trained at r = 4)
  lora-lightning compress RUN --output compressed --check_targets vllm,llama.cpp

layout of the written folder:
  portable   one rank for all layers, the least of 8, 16, 32, 64, 128 and 256 that holds k, padded with zeros;
             lora_alpha is r, the scaling is in the factors, no rsLoRA and no patterns: loaders that read only one
             alpha and one r compute the same as PEFT (default)
  exact      one rank for all layers, k itself
  mixed      as many parameters as k takes, spread over the layers by their singular values; right in PEFT only

a margin is in points of a share such as accuracy (default 0.5), in percent of a perplexity (default 1), else in the
unit of the metric. Few examples prove little: with 435 of them no loss of 0.5 points can be excluded.

exit status 3, and nothing is written: on test data the adapter is worse by more than the margin, the written folder is
not the model that was judged, the adapter changes nothing, or one of --check_targets would not load it right.
"""


def build_compress_parser() -> SentenceParser:
    """Returns the parser of `compress`, without the options of the data."""
    parser = SentenceParser(
        prog="lora-lightning compress",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="RUN", type=Path, help="a run folder; its best checkpoint is compressed")
    add("--output", metavar="DIR", type=Path, required=True, help="the adapter folder to write; must not exist")
    add("--overwrite", action="store_true", help="replace DIR, once the new folder has passed")
    add("--metric", metavar="NAME", help="what decides (default: the metric that chose the best checkpoint)")
    add("--margin", metavar="NUMBER", type=float, help="the largest loss that does not matter")
    ranks = "ranks to test, such as 8,4,2, or all (default: those of 256, 128, 64, 32, 16, 8, 6, 4, 3, 2, 1 below r)"
    add("--ranks", metavar="LIST", help=ranks)
    add("--layout", metavar="LAYOUT", default="portable", help="portable (default), exact or mixed")
    trained = "a run that was trained at a lower rank, to compare with on the same examples; repeatable"
    add("--trained_at_k", "--trained-at-k", metavar="RUN", type=Path, action="append", default=[], help=trained)
    targets = "programs that have to load the folder right: peft, vllm, llama.cpp; with commas"
    add("--check_targets", "--check-targets", metavar="LIST", help=targets)
    config = "a YAML file with `data` other than the run's own; repeatable, and --data.* options override it"
    add("--config", metavar="DATA.yaml", action="append", default=[], help=config)
    add("--json", action="store_true", help="print all numbers as JSON instead of tables")
    return parser


def run_compress(arguments: Sequence[str]) -> "CompressResult":
    """Runs `lora-lightning compress`.

    Args:
        arguments: Options of the command.

    Returns:
        What was written and measured.

    Raises:
        LoraLightningError: If an option, the run or the data is wrong.
        VerificationError: If a check fails.
    """
    words, data = split_data_options(arguments)
    options = build_compress_parser().parse_args(words or ["--help"])
    from lora_lightning.artefacts import compress  # noqa: PLC0415  # takes seconds, and --help should not

    result = compress(
        options.source,
        options.output,
        metric=options.metric,
        margin=options.margin,
        ranks=read_ranks(options.ranks),
        layout=options.layout,
        trained_at_k=options.trained_at_k,
        check_targets=read_targets(options.check_targets),
        config=options.config,
        overrides=data,
        overwrite=options.overwrite,
        report=print_progress,
    )
    if options.json:
        print(json_text(result.as_json()))
    else:
        print_compression(result)
    return result


def read_ranks(text: str | None) -> list[int] | Literal["all"] | None:
    """Reads `--ranks`.

    Args:
        text: Numbers with commas, or `all`; `None` for the default.

    Returns:
        What `compress` takes.

    Raises:
        ConfigurationError: If it is something else.
    """
    if text is None or text == "all":
        return "all" if text else None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        msg = f"--ranks is {text!r}, but it must be whole numbers with commas, such as 8,4,2, or all."
        raise ConfigurationError(msg) from error


def read_targets(text: str | None) -> list[str]:
    """Reads `--check_targets`.

    Args:
        text: Names with commas; `None` for the default.

    Returns:
        What `compress` takes.

    Raises:
        ConfigurationError: If there is no name.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not names:
        msg = f"--check_targets is {text!r}, which names no program; give peft, vllm or llama.cpp, or leave it out."
        raise ConfigurationError(msg)
    return names


def print_compression(result: "CompressResult") -> None:
    """Prints a table of all ranks, the verdict, sizes and loaders.

    Args:
        result: What was measured.
    """
    from lora_lightning.artefacts.compress_report import verdict_sentences  # noqa: PLC0415

    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    console.print(f"compared with the full adapter (r = {result.r}) on {result.measured_on}\n")
    console.print(_ranks_table(result))
    console.print()
    for sentence in verdict_sentences(result):
        console.print(sentence)
    sizes = result.sizes
    console.print(f"\nbytes: {sizes.full:,} as trained, {sizes.kept:,} at k = {result.k}, {sizes.written:,} as written")
    for found in result.loaders:
        reasons = f" ({'; '.join(found.reasons)})" if found.reasons else ""
        console.print(f"{found.target}: {_loading(found.outcome)}{reasons}; rules of {found.read_on}")
    console.print(f"loaded again on a fresh base, logits move by up to {result.max_logit_difference:.1e}")
    for note in result.notes:
        console.print(f"note: {note}")
    console.print(f"picture: {result.output / 'compression.png'}")
    console.print(f"compressed adapter: {result.output}")


def _loading(outcome: str) -> str:
    return {"right": "loads it right", "refused": "refuses it", "wrong": "loads it wrongly"}[outcome]


def _ranks_table(result: "CompressResult") -> Table:
    from lora_lightning.artefacts.rank_trials import shown_ends  # noqa: PLC0415

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("ranks")
    for heading in ("parameters", "examples", result.metric.name, "difference (95 % interval)"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for found in result.validation:
        difference = "" if math.isnan(found.difference.value) else shown_ends(found.difference, result.metric)
        value = "undefined" if math.isnan(found.value) else f"{result.metric.shown_value(found.value):.4g}"
        cells = (f"{found.parameters:,}", f"{found.examples:,}", value, difference)
        table.add_row(found.name, *cells, _verdict(found, result))
    return table


def _verdict(found: "RankMeasurement", result: "CompressResult") -> str:
    written = ", written" if found is result.chosen else ""
    return f"{found.verdict or ''}{written}".removeprefix(", ")
