"""`lora-lightning fit`: trains, tests the best checkpoint and prints the results."""

from collections.abc import Sequence

from rich.console import Console

from lora_lightning.cli.tables import metrics_table
from lora_lightning.errors import VerificationError
from lora_lightning.runs.record import RunRecord
from lora_lightning.training.announcements import tensorboard_command
from lora_lightning.training.commands import prepare_command
from lora_lightning.training.fitting import TrainingRun
from lora_lightning.training.scored_rows import in_words


def run_fit(arguments: Sequence[str]) -> TrainingRun:
    """Runs `lora-lightning fit`.

    Args:
        arguments: Options of the command.

    Returns:
        The run.

    Raises:
        VerificationError: If a check of the trained model failed. It is raised after the results are printed.
    """
    training = TrainingRun(prepare_command("fit", arguments))
    try:
        training.execute()
    except VerificationError:
        if training.failed_check is not None:
            print_fit_results(training)
        raise
    print_fit_results(training)
    return training


def print_fit_results(training: TrainingRun) -> None:
    """Prints the metrics and the paths of all results, on the main process.

    Args:
        training: The finished run.
    """
    if training.is_fast_dev_run or not training.trainer.is_global_zero:
        return
    record = RunRecord.load(training.folder)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if ended_early := training.ended_early:
        console.print(f"stopped early: {ended_early}")
    console.print(metrics_table(record.metrics))
    for note in filter(None, (training.not_validated, in_words(training.limited_rows(record.flat_metrics)))):
        console.print(f"note: {note}")
    trained, total = record.trainable_parameters, record.total_parameters
    console.print(f"\ntrainable parameters: {trained:,} of {total:,} ({100 * (record.trainable_share or 0):.2f} %)")
    console.print(f"run folder:           {record.folder}")
    if why_none := training.no_best_reason:
        console.print(f"last checkpoint:      {record.checkpoint} (none is the best: {why_none})")
    else:
        adopted = training.checkpoint.adopted
        whose = f" (that of {adopted}: no validation of this run was better)" if adopted else ""
        console.print(f"best checkpoint:      {training.checkpoint.best_model_path}{whose}")
    whose = " (weights of the last step)" if why_none else ""
    label = "adapter for PEFT:    " if training.task.lora else "for transformers:    "
    console.print(f"{label} {record.adapter}{whose}")
    if command := tensorboard_command(training.trainer):
        console.print(f"curves:               {command}")
