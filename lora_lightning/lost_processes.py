"""What to do when one of several training processes is gone."""

import signal
import subprocess

from lightning import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import DistError

from lora_lightning.errors import TrainingError

# PyTorch's gloo raises plain RuntimeErrors.
SIGNS = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused")


def lost_process(trainer: Trainer, error: RuntimeError) -> TrainingError | None:
    """Ends the other processes of this machine where one of them is gone.

    Args:
        trainer: Of this process.
        error: What training failed with.

    Returns:
        What to say; `None` if the error is about something else.
    """
    is_lost = isinstance(error, DistError) or any(sign in str(error).lower() for sign in SIGNS)
    if trainer.world_size == 1 or not is_lost:
        return None
    who = end_children(trainer, patience=5) or f"one of the {trainer.world_size} training processes is gone"
    return TrainingError(
        f"{who}; the others stop, here after step {trainer.global_step}. What it had to say is above; when that is "
        "mended, go on with the same command and --resume auto."
    )


def end_children(trainer: Trainer, patience: float) -> str:
    """Collects the processes that Lightning started, so that none is left.

    Args:
        trainer: Of the main process; others have started none.
        patience: Seconds that the first to end may take; those that take longer, or have not ended then, are killed.

    Returns:
        How the first one ended that did not end well; empty where none did.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return ""
    found = ""
    for rank, process in enumerate(launcher.procs, start=1):
        try:
            status = process.wait(0 if found else patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            continue
        if status and not found:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            found = f"training process {rank} {how}"
    return found
