"""Signals before and after training, when there is nothing to save: they end the process immediately.

Nothing heavy is imported here, so that signals are handled from the start. `training.stop_requests` has the handlers
that are used during training.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lora_lightning.errors import ExitStatus, TrainingStopped

# SLURM and others send SIGUSR1 before a time limit. Windows does not have it.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
KILLED = -9  # return code of a process that the system or a user has killed; Windows has no SIGKILL
TERMINATION_SIGNALS = [number for number in STOP_SIGNALS if number != signal.SIGINT]


@contextmanager
def ending_on_signals(wanted: bool) -> Iterator[None]:
    """Lets SIGTERM and SIGUSR1 end the process immediately, until `raise_training_stopped` or `StopSignals` takes over.

    Args:
        wanted: Whether to install handlers at all.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in TERMINATION_SIGNALS}
    set_stop_handler(exit_on_signal)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def set_stop_handler(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Sets the handler of SIGTERM and SIGUSR1. Does nothing outside Python's main thread.

    Args:
        handler: A handler as in `signal.signal`. With `SIG_IGN`, a process that is stopping can finish undisturbed,
            even if SIGTERM follows SIGUSR1.
    """
    if threading.current_thread() is threading.main_thread():
        for number in TERMINATION_SIGNALS:
            signal.signal(number, handler)


def ignore_lost_processes() -> None:
    """Removes PyTorch's handler of SIGCHLD, which raises an error for every data loading process that is killed.

    One of these errors ends a command; another one while it is reported, or while Python exits, would be a traceback.
    Does nothing outside Python's main thread.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Ends the process immediately; for use while modules are imported, where an exception could be swallowed."""
    del frame
    if is_main_process_of_machine():
        stop = TrainingStopped(signal.Signals(number), None, main_process=True)
        print(f"lora-lightning: {stop}", file=sys.stderr, flush=True)
    os._exit(ExitStatus.STOPPED)


def raise_training_stopped(number: int, frame: FrameType | None) -> None:
    """Raises `TrainingStopped`; for use while data and weights load, so that other processes are ended, too."""
    del frame
    raise TrainingStopped(signal.Signals(number), None, main_process=is_main_process_of_machine(), alone=True)


def is_main_process_of_machine() -> bool:
    """Returns whether this is the main process of its machine, according to the launcher's environment variables.

    There may be no trainer yet, and the process that starts the others does not have a rank before it does so.
    """
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
