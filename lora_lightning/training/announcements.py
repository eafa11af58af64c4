"""What a run tells its user while it works: where its results will be, on what it trains, what is left out."""

from pathlib import Path

from lightning import Trainer
from rich.console import Console


def announce_run(folder: Path, trainer: Trainer, resumed: Path | None = None) -> None:
    """Prints where the results will be and on what the run trains, before the work starts.

    Args:
        folder: The run's.
        trainer: Knows devices and processes.
        resumed: The checkpoint that it is resumed from.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"run folder: {folder}  (tensorboard --logdir {folder.parent})")
    strategy = f"es, {type(trainer.strategy).__name__}" if trainer.world_size > 1 else ""
    console.print(f"trains on: {trainer.strategy.root_device.type}, {trainer.world_size} process{strategy}")
    if resumed is not None:
        console.print(f"resumes from {resumed}")


def announce_untested(trainer: Trainer, why: str) -> None:
    """Prints why there is no test.

    Args:
        trainer: Knows whether this is the main process.
        why: The reason.
    """
    if trainer.is_global_zero:
        print(f"not tested: {why}")
