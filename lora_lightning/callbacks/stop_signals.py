"""Signals that ask a run to stop: noted at once, obeyed after the step."""

import signal
import sys
import threading
from types import FrameType

import torch
from lightning import Trainer

from lora_lightning.errors import TrainingStopped

# SIGUSR1 is what SLURM and others send ahead of a time limit; Windows has none.
ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopSignals:
    """Handlers of SIGINT, SIGTERM and SIGUSR1 for the time of training; a second Ctrl-C stops at once.

    They take the place of Lightning's: its SLURM handler saves in the middle of a step, and its SIGTERM handler talks
    to the other processes in the middle of whatever they say to one another. Lightning puts the handlers of before back
    when it is done.
    """

    def __init__(self) -> None:
        self._asked = 0

    def listen(self) -> None:
        """Takes over the signals; only Python's main thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                signal.signal(number, self._note)

    def stop_at_once(self, trainer: Trainer) -> None:
        """Lets SIGTERM and SIGUSR1 end what runs now, when all is saved; Ctrl-C does so by itself.

        Args:
            trainer: Knows the last step.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            raise TrainingStopped(signal.Signals(number), trainer.global_step, main_process=trainer.is_global_zero)

        if threading.current_thread() is threading.main_thread():
            for number in set(ASKING) - {signal.SIGINT}:
                signal.signal(number, stop)

    def agreed(self, trainer: Trainer) -> signal.Signals | None:
        """What any of the processes was asked; collective.

        Args:
            trainer: Knows the other processes.

        Returns:
            The same signal on every process; `None` where training goes on.
        """
        number = self._asked
        if trainer.world_size > 1:
            asked = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(asked, reduce_op="max"))
        return signal.Signals(number) if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            sys.stderr.write("\nstops after this step, or this validation; Ctrl-C again stops at once\n")
        self._asked = number
