"""`lora-lightning merge`: writes a plain transformers folder, and prints how it compares with the adapter."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lora_lightning.cli.data_options import print_progress, split_data_options
from lora_lightning.cli.sentence_parser import SentenceParser
from lora_lightning.metrics.direction import LOWER_IS_BETTER
from lora_lightning.reports.study_json import json_text

if TYPE_CHECKING:
    from lora_lightning.analysis.outputs import OutputDifference
    from lora_lightning.artefacts.results import MergeMeasurement, MergeResult
    from lora_lightning.statistics import Interval

WIDTH = 200  # at most, of tables: a narrow terminal wraps their lines
MEBIBYTE = 2**20
DESCRIPTION = """\
Merge an adapter into its base model and write a folder that transformers loads without PEFT. The folder is loaded
again, here and in a fresh process with transformers alone, and compared with the adapter beside its base on validation
data. If it is not the same model, nothing is written.
"""
EPILOG = """\
examples, complete:
  lora-lightning fit --config configs/quickstart.yaml
  lora-lightning merge lightning_logs/quickstart/version_0 --output merged
  python -c "from transformers import pipeline; print(pipeline('text-classification', 'merged')('wake me up at seven'))"

  lora-lightning merge RUN --output merged --dtype bfloat16 --base_model_id org/name
  lora-lightning merge ADAPTER --output merged --config DATA.yaml --data.data_dir FOLDER
  hf upload my-name/my-model merged                              (uploads the folder to the hub)

data: a run is compared on its own validation data, which --data.* options change, and --model.backbone FOLDER says
where its base model is now. A bare adapter needs a YAML file
with `data:` (class_path and init_args), or --data CLASS and --data.* options; without them it is compared on random
tokens, and its gain over the base is not judged.

a merge passes if
  - the lower bound of the recovery ratio, the share of the adapter's gain in log-likelihood that is left, is above 0.95
  - without data, or if that gain may be 0 or less, 95 to 105 % of the adapter's effect on the logits are left
  - in float32, no logit moves by more than 1e-4 of max(1, largest logit), in this and in the fresh process
Otherwise, and for an adapter that changes nothing or lacks its head, the exit status is 3 and nothing is written.

a quantized base has three targets, which are all measured:
  dequantized   the weights that the adapter was trained on (default)
  original      the weights before quantization
  requantized   quantized again, in the same way
"""


def build_merge_parser() -> SentenceParser:
    """Returns the parser of `merge`, without the options of the data."""
    parser = SentenceParser(
        prog="lora-lightning merge",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="RUN_OR_ADAPTER", type=Path, help="a run folder (its best checkpoint), or a PEFT folder")
    add("--output", metavar="DIR", type=Path, required=True, help="the folder to write; must not exist")
    add("--overwrite", action="store_true", help="replace DIR, once the new folder has passed")
    target = "what to merge into, if the base is quantized: dequantized (default), original or requantized"
    add("--target", metavar="TARGET", help=target)
    dtype = "dtype of the weights: float32 (default), bfloat16 or float16"
    add("--dtype", metavar="DTYPE", default="float32", help=dtype)
    base = "the base model's id on the hub, for the model card, if the base is a local folder"
    add("--base_model_id", "--base-model-id", metavar="ID", help=base)
    config = "a YAML file with the `data` to compare on; repeatable, and --data.* options override it"
    add("--config", metavar="DATA.yaml", action="append", default=[], help=config)
    add("--json", action="store_true", help="print all numbers as JSON instead of tables")
    return parser


def run_merge(arguments: Sequence[str]) -> "MergeResult":
    """Runs `lora-lightning merge`.

    Args:
        arguments: Options of the command.

    Returns:
        What was written and measured.

    Raises:
        LoraLightningError: If an option, the adapter or the data is wrong.
        VerificationError: If the merged model is not the adapter model.
    """
    words, data = split_data_options(arguments)
    options = build_merge_parser().parse_args(words or ["--help"])
    from lora_lightning.artefacts import merge  # noqa: PLC0415  # takes seconds, and --help should not

    result = merge(
        options.source,
        options.output,
        target=options.target,
        dtype=options.dtype,
        base_model_id=options.base_model_id,
        config=options.config,
        overrides=data,
        overwrite=options.overwrite,
        report=print_progress,
    )
    if options.json:
        print(json_text(result.as_json()))
    else:
        print_merge(result)
    return result


def print_merge(result: "MergeResult") -> None:
    """Prints tables of all merges and of the written one's metrics.

    Args:
        result: What was measured.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    console.print(f"compared with the adapter beside its base on {result.measured_on}\n")
    console.print(_merges_table(result))
    if result.written.metrics:
        console.print()
        console.print(_metrics_table(result.written))
    console.print(f"\n{_fresh_process_sentence(result)}")
    if result.recommended != result.target:
        console.print(f"recommended target: {result.recommended} (changes least)")
    for note in result.notes:
        console.print(f"note: {note}")
    console.print(f"merged model: {result.output}")


def _fresh_process_sentence(result: "MergeResult") -> str:
    found, again = result.fresh_process, result.fresh_process.max_difference_after_saving_again
    model = "the adapter model's" if found.reference == "adapter" else "those of the merged model in this process"
    text = f"fresh process, transformers alone: logits differ from {model} by up to {found.max_logit_difference:.1e}"
    return text if again is None else f"{text}, and move by up to {again:.1e} after saving and loading once more"


def _merges_table(result: "MergeResult") -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("merged into", "dtype"):
        table.add_column(heading)
    for heading in ("MiB", "largest difference of a logit", "KL divergence (nats)", "decisions that flip"):
        table.add_column(heading, justify="right")
    for heading in ("recovery ratio (95 % interval)", "verdict"):
        table.add_column(heading)
    for found in result.measurements:
        difference, is_written = found.difference, found is result.written
        table.add_row(
            found.target,
            found.dtype,
            f"{found.size / MEBIBYTE:.1f}",
            f"{difference.max_logit_difference:.1e}",
            *_divergence_and_flips(difference),
            _recovery(found),
            ("passes" if found.failure is None else "fails") + (", written" if is_written else ""),
        )
    effect = result.written.adapter_effect
    cells = (f"{effect.max_logit_difference:.1e}", *_divergence_and_flips(effect))
    table.add_row("base without adapter", "", "", *cells, "", "")
    return table


def _divergence_and_flips(difference: "OutputDifference") -> tuple[str, str]:
    """Two cells, empty for a regression, which has no probabilities and no decisions."""
    if not difference.decisions:
        return "", ""
    flips = f"{100 * difference.flipped_share:.3g} % of {difference.decisions}"
    return f"{difference.kl_divergence:.1e}", flips


def _recovery(found: "MergeMeasurement") -> str:
    if found.recovery is None or not found.recovery.has_gain:
        return "not judged"
    ratio = found.recovery.ratio
    return f"{ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f})"


def _metrics_table(found: "MergeMeasurement") -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("metric")
    for heading in ("adapter", "merged", "95 % interval of merged", "change", "95 % interval of the change"):
        table.add_column(heading, justify="right")
    for each in found.metrics:
        arrow = " (lower is better)" if each.name in LOWER_IS_BETTER else ""
        values = (f"{each.adapter.value:.4f}", f"{each.merged.value:.4f}", _ends(each.merged))
        table.add_row(found.label(each) + arrow, *values, f"{each.change.value:+.4f}", _ends(each.change, "+"))
    return table


def _ends(interval: "Interval", sign: str = "") -> str:
    return "" if math.isnan(interval.low) else f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f}"
