"""`lora-lightning predict`: classifies, answers or continues the texts in a file."""

from collections.abc import Sequence

from lora_lightning.training.commands import prepare_command
from lora_lightning.training.evaluation import write_predictions
from lora_lightning.training.lightning_cli import LoraLightningCLI


def run_predict(arguments: Sequence[str]) -> LoraLightningCLI:
    """Runs `lora-lightning predict`.

    Args:
        arguments: Options of the command.

    Returns:
        The trainer, task and data module that were used.
    """
    cli = prepare_command("predict", arguments)
    writer = write_predictions(cli)
    if cli.trainer.is_global_zero:
        print(f"{writer.rows_written} prediction{'s' * (writer.rows_written != 1)} written to {writer.file}")
    return cli
