"""`lora-lightning validate` and `test`: evaluate a checkpoint, then print and write its metrics."""

from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from lora_lightning.cli.tables import label_table, metrics_table
from lora_lightning.datamodules.base import TEST, VALIDATION
from lora_lightning.runs.record import metrics_by_split
from lora_lightning.training.commands import prepare_command
from lora_lightning.training.evaluation import folder_of_checkpoint, score_split, write_metrics
from lora_lightning.training.label_results import results_of_last_splits, write_label_scores, write_pictures
from lora_lightning.training.lightning_cli import LoraLightningCLI
from lora_lightning.training.scored_rows import in_words, scored_rows

KINDS = {"validate": VALIDATION, "test": TEST}


def run_validate(arguments: Sequence[str]) -> LoraLightningCLI:
    """Runs `lora-lightning validate`.

    Args:
        arguments: Options of the command.

    Returns:
        The trainer, task and data module that were used.
    """
    return _score("validate", arguments)


def run_test(arguments: Sequence[str]) -> LoraLightningCLI:
    """Runs `lora-lightning test`.

    Args:
        arguments: Options of the command.

    Returns:
        The trainer, task and data module that were used.
    """
    return _score("test", arguments)


def _score(command: Literal["validate", "test"], arguments: Sequence[str]) -> LoraLightningCLI:
    cli = prepare_command(command, arguments)
    metrics = score_split(cli, command)
    if cli.trainer.is_global_zero:
        folder = folder_of_checkpoint(cli.options.ckpt_path)
        path = folder / f"{command}_metrics.json"
        rows = scored_rows(cli.trainer, cli.datamodule, KINDS[command])
        write_metrics(metrics, path, rows)
        console = Console(highlight=False, markup=False, soft_wrap=True)
        console.print(metrics_table(metrics_by_split(metrics)))
        if limited := in_words(rows):
            console.print(f"note: {limited}")
        console.print(f"metrics: {path}")
        for split, found in results_of_last_splits(cli.trainer).items():
            console.print(label_table(split, found.scores))
            console.print(f"labels: {write_label_scores(folder, split, found.scores)}")
            console.print(f"pictures: {', '.join(map(str, write_pictures(folder, split, found)))}")
    return cli
