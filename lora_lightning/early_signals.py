"""Signals that end a run at once, while nothing is to be saved: it starts, loads, or is tested.

Nothing heavy is imported here, so that they are heard from the beginning.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lora_lightning.errors import TrainingStopped

# SIGUSR1 is what SLURM and others send ahead of a time limit; Windows has none.
ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def stopping_at_once(wanted: bool) -> Iterator[None]:
    """Lets SIGTERM and SIGUSR1 end a run at once; `StopSignals` takes over for the time of training.

    Args:
        wanted: Whether to do anything.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop_at_once) for number in ASKING if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    del frame
    raise TrainingStopped(signal.Signals(number), None, main_process=is_first_of_its_machine(), alone=True)


def ignore_further_signals() -> None:
    """Lets what stops now end in peace: some send SIGTERM after SIGUSR1."""
    if threading.current_thread() is threading.main_thread():
        for number in set(ASKING) - {signal.SIGINT}:
            signal.signal(number, signal.SIG_IGN)


def is_first_of_its_machine() -> bool:
    """By what a launcher says: there may be no trainer yet, and the one that starts the others has no rank before."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
