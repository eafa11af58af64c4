"""Signals during training: the run stops after the current step. `runs.signals` has the handlers before and after."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import torch
from lightning import Trainer

from lora_lightning.errors import TrainingStopped
from lora_lightning.runs.signals import STOP_SIGNALS, is_main_process_of_machine, set_stop_handler


class StopSignals:
    """Handles SIGINT, SIGTERM and SIGUSR1 during training. A second Ctrl-C stops immediately.

    Lightning restores the previous handlers when training ends.
    """

    def __init__(self) -> None:
        self._received = 0
        self._process = os.getpid()  # data loading processes inherit the handlers

    def install_handlers(self) -> None:
        """Installs the handlers, in Python's main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._handle_signal)

    def stop_immediately(self, trainer: Trainer) -> None:
        """From now on, SIGTERM and SIGUSR1 stop immediately, like Ctrl-C. To be called when everything is saved.

        Args:
            trainer: The trainer, for its number of steps.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            first = trainer.local_rank == 0
            raise TrainingStopped(signal.Signals(number), trainer.global_step, main_process=first, alone=True)

        set_stop_handler(stop)

    def stop_if_requested(self, trainer: Trainer, save: Callable[[Trainer], None] | None = None) -> None:
        """Stops if any process received a signal; collective.

        Args:
            trainer: The trainer, for its number of steps.
            save: A function that saves the last step; `None` if it is already saved.

        Raises:
            TrainingStopped: On every process, if any of them received a signal.
        """
        if received := self._received_by_any_process(trainer):
            if save is not None:
                save(trainer)
            raise TrainingStopped(received, trainer.global_step, main_process=trainer.local_rank == 0)

    def _received_by_any_process(self, trainer: Trainer) -> signal.Signals | None:
        """Returns the same signal on every process; collective."""
        number = self._received
        if trainer.world_size > 1:
            received = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))
        return signal.Signals(number) if number else None

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        if number == signal.SIGINT and os.getpid() == self._process and is_main_process_of_machine():
            sys.stderr.write("\nstopping after this step or validation; press Ctrl-C again to stop immediately\n")
        self._received = number
