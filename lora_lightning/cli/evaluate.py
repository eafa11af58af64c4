"""`lora-lightning validate` and `test`: score a checkpoint, print and write its metrics."""

from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from lora_lightning.cli.tables import metrics_table
from lora_lightning.runs.record import metrics_by_split
from lora_lightning.training.commands import prepare
from lora_lightning.training.evaluation import folder_of_checkpoint, score_split, write_metrics
from lora_lightning.training.lightning_cli import LoraLightningCLI


def run_validate(words: Sequence[str]) -> LoraLightningCLI:
    """Runs `validate`.

    Args:
        words: Its options.

    Returns:
        What ran.
    """
    return _run("validate", words)


def run_test(words: Sequence[str]) -> LoraLightningCLI:
    """Runs `test`.

    Args:
        words: Its options.

    Returns:
        What ran.
    """
    return _run("test", words)


def _run(command: Literal["validate", "test"], words: Sequence[str]) -> LoraLightningCLI:
    cli = prepare(command, words)
    metrics = score_split(cli, command)
    if cli.trainer.is_global_zero:
        path = folder_of_checkpoint(cli.options.ckpt_path) / f"{command}_metrics.json"
        write_metrics(metrics, path)
        console = Console(highlight=False, markup=False, soft_wrap=True)
        console.print(metrics_table(metrics_by_split(metrics)))
        console.print(f"metrics: {path}")
    return cli
