"""Messages that a run prints while it works: its folder, its device, and why it is not tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console


def announce_run(
    folder: Path,
    trainer: Trainer,
    split_sizes: Mapping[str, str],
    resumed: Path | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Prints the run folder, the data and the device before training starts.

    Args:
        folder: The run folder.
        trainer: The trainer, for its devices and processes.
        split_sizes: The number of rows of each split, in words.
        resumed: The checkpoint from which the run is resumed, if any.
        notes: More lines, such as where a run starts from.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    command = tensorboard_command(trainer)
    console.print(f"run folder: {folder}" + (f"  ({command})" if command else ""))
    console.print(f"data: {', '.join(f'{name} {size}' for name, size in split_sizes.items())}")
    strategy = f"es, {type(trainer.strategy).__name__}" if trainer.world_size > 1 else ""
    console.print(f"training on: {trainer.strategy.root_device.type}, {trainer.world_size} process{strategy}")
    for note in notes:
        console.print(note)
    if resumed is not None:
        console.print(f"resuming from {resumed}")


def tensorboard_command(trainer: Trainer) -> str:
    """Returns the command that shows a run beside the others of its logger; empty if it does not log to TensorBoard.

    Args:
        trainer: With its loggers.
    """
    places = (logger.save_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))
    return next((f"tensorboard --logdir {place}" for place in places), "")


def announce_skipped_test(trainer: Trainer, why: str) -> None:
    """Prints why the model is not tested after training.

    Args:
        trainer: The trainer. Only its main process prints.
        why: The reason.
    """
    if trainer.is_global_zero:
        print(f"not tested: {why}")
