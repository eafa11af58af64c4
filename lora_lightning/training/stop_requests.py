"""Signals that ask a run to stop: noted at once, obeyed after the step."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import torch
from lightning import Trainer

from lora_lightning.errors import TrainingStopped
from lora_lightning.runs.signals import ASKING, is_first_of_its_machine, set_stop_handler


class StopSignals:
    """Handlers of SIGINT, SIGTERM and SIGUSR1 for the time of training; a second Ctrl-C stops at once.

    Lightning puts the handlers of before back when it is done.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._process = os.getpid()  # workers that load data inherit the handlers

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
            first = trainer.local_rank == 0
            raise TrainingStopped(signal.Signals(number), trainer.global_step, main_process=first, alone=True)

        set_stop_handler(stop)

    def check(self, trainer: Trainer, save: Callable[[Trainer], None] | None = None) -> None:
        """Stops if any process was asked to; collective.

        Args:
            trainer: Knows the last step.
            save: Saves it; `None` where it is saved.

        Raises:
            TrainingStopped: On every process.
        """
        if asked := self._agreed(trainer):
            if save is not None:
                save(trainer)
            raise TrainingStopped(asked, trainer.global_step, main_process=trainer.local_rank == 0)

    def _agreed(self, trainer: Trainer) -> signal.Signals | None:
        """What any of the processes was asked: the same on every process; collective."""
        number = self._asked
        if trainer.world_size > 1:
            asked = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(asked, reduce_op="max"))
        return signal.Signals(number) if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        if number == signal.SIGINT and os.getpid() == self._process and is_first_of_its_machine():
            sys.stderr.write("\nstops after this step, or this validation; Ctrl-C again stops at once\n")
        self._asked = number
