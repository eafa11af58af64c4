"""`lora-lightning fit`: trains, tests the best checkpoint, prints what came out."""

from collections.abc import Sequence

from rich.console import Console

from lora_lightning.cli.tables import metrics_table
from lora_lightning.errors import VerificationError
from lora_lightning.runs.layout import EVENTS
from lora_lightning.runs.record import RunRecord
from lora_lightning.training.commands import prepare
from lora_lightning.training.fitting import TrainingRun


def run(words: Sequence[str]) -> TrainingRun:
    """Runs the command.

    Args:
        words: Its options.

    Returns:
        The run.

    Raises:
        VerificationError: If a check of the trained model failed; after everything else.
    """
    training = TrainingRun(prepare("fit", words))
    try:
        training.execute()
    except VerificationError:
        if training.failed_check is not None:
            print_results(training)
        raise
    print_results(training)
    return training


def print_results(training: TrainingRun) -> None:
    """Prints the metrics and where everything is, on the main process.

    Args:
        training: The run, finished.
    """
    if training.leaves_nothing or not training.trainer.is_global_zero:
        return
    record = RunRecord.load(training.folder)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if ended_early := training.ended_early:
        console.print(f"stopped early: {ended_early}")
    console.print(metrics_table(record.metrics))
    trained, total = record.trainable_parameters, record.total_parameters
    console.print(f"\ntrainable parameters: {trained:,} of {total:,} ({100 * (record.trainable_share or 0):.2f} %)")
    console.print(f"run folder:           {record.folder}")
    if why_none := training.why_none_is_best:
        console.print(f"last checkpoint:      {record.checkpoint} (none is the best: {why_none})")
    else:
        console.print(f"best checkpoint:      {training.checkpoint.best_model_path}")
    whose = " (weights of the last step)" if why_none else ""
    label = "adapter for PEFT:    " if training.task.lora else "for transformers:    "
    console.print(f"{label} {record.adapter}{whose}")
    if any(record.folder.glob(EVENTS)):
        console.print(f"curves:               tensorboard --logdir {record.folder.parent}")
