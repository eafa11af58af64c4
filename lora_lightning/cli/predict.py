"""`lora-lightning predict`: classifies, answers or continues what a file holds."""

from collections.abc import Sequence

from lora_lightning.training.commands import prepare
from lora_lightning.training.evaluation import write_predictions
from lora_lightning.training.lightning_cli import LoraLightningCLI


def run(words: Sequence[str]) -> LoraLightningCLI:
    """Runs the command.

    Args:
        words: Its options.

    Returns:
        What ran.
    """
    cli = prepare("predict", words)
    writer = write_predictions(cli)
    if cli.trainer.is_global_zero:
        print(f"{writer.rows_written} predictions are in {writer.file}")
    return cli
