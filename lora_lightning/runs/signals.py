"""Signals that end a run at once, while nothing is to be saved: it starts, loads, or is tested.

Nothing heavy is imported here, so that they are heard from the beginning.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lora_lightning.errors import ExitStatus, TrainingStopped

# SIGUSR1 is what SLURM and others send ahead of a time limit; Windows has none.
ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
ENDING = [number for number in ASKING if number != signal.SIGINT]


@contextmanager
def ending_on_signals(wanted: bool) -> Iterator[None]:
    """Lets SIGTERM and SIGUSR1 end a run at once, until `raise_training_stopped` or `StopSignals` handles them.

    Args:
        wanted: Whether to do anything.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    set_stop_handler(exit_on_signal)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def set_stop_handler(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Hands SIGTERM and SIGUSR1 to another handler, which only Python's main thread may.

    Args:
        handler: As `signal.signal` takes it; `SIG_IGN` lets what stops end in peace: SIGTERM may follow SIGUSR1.
    """
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, handler)


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """While modules are imported, where an exception might be lost."""
    del frame
    if is_first_of_its_machine():
        stop = TrainingStopped(signal.Signals(number), None, main_process=True)
        print(f"lora-lightning: {stop}", file=sys.stderr, flush=True)
    os._exit(ExitStatus.STOPPED)


def raise_training_stopped(number: int, frame: FrameType | None) -> None:
    """While data and weights load; other processes may have to be ended, too."""
    del frame
    raise TrainingStopped(signal.Signals(number), None, main_process=is_first_of_its_machine(), alone=True)


def is_first_of_its_machine() -> bool:
    """By what a launcher says: there may be no trainer yet, and the one that starts the others has no rank before."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
