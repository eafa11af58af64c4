"""Ends all training processes of a machine together, and makes one of them report why."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer
from torch.distributed import DistError

from lora_lightning.compat.lightning import HookedScriptLauncher, replace_script_launcher
from lora_lightning.errors import ExitStatus, TrainingError, TrainingStopped
from lora_lightning.runs.signals import KILLED, TERMINATION_SIGNALS, set_stop_handler

# Parts of the messages of RuntimeErrors that gloo raises when a connection is lost.
LOST_CONNECTION = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused")
PATIENCE = 15  # seconds for a process to notice by itself that another one is gone, and to report more details
# Exit statuses of processes that received a signal, and the status of the main process in that case.
STATUS_WHEN_STOPPED = dict.fromkeys(
    (ExitStatus.STOPPED, *(-number for number in TERMINATION_SIGNALS)), ExitStatus.STOPPED
)
STATUS_WHEN_STOPPED |= dict.fromkeys((ExitStatus.INTERRUPTED, -signal.SIGINT), ExitStatus.INTERRUPTED)
MAIN_PROCESS = "LORA_LIGHTNING_MAIN_PROCESS"  # its process id, in the environment of the processes that it starts


class WatchingLauncher(HookedScriptLauncher):
    """Lightning's launcher for the other processes of a machine, with our own way to watch them.

    Lightning's launcher also kills the main process, before it can report why.
    """

    def start_processes(self) -> None:
        """Starts the other processes and watches them."""
        os.environ[MAIN_PROCESS] = str(os.getpid())
        try:
            super().start_processes()
        finally:
            del os.environ[MAIN_PROCESS]
        threading.Thread(target=self._watch, daemon=True).start()

    def launch(self, *args: object, **kwargs: object) -> object:
        """Starts the other processes, then calls the function to launch.

        Args:
            args: As in Lightning.
            kwargs: As in Lightning.

        Returns:
            The result of the function.
        """
        if not self.cluster_environment.creates_processes_externally:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            self.start_processes()  # Lightning then assumes that they were started externally, and does not watch them
        return super().launch(*args, **kwargs)  # type: ignore[arg-type]

    def _watch(self) -> None:
        while not any(process.poll() for process in self.procs):
            time.sleep(1)
        status = next(
            (
                STATUS_WHEN_STOPPED[process.returncode]
                for process in self.procs
                if process.returncode in STATUS_WHEN_STOPPED
            ),
            None,
        )
        time.sleep(PATIENCE if status is None else 1)
        why = end_child_processes(self, patience=0)
        if status is not None:  # this process probably received the signal, too, but waits for one that is gone
            _end_this_process(f"stopped, because {why}", status)
        _end_this_process(f"error: {why}; the other processes were stopped", ExitStatus.WRONG_INPUT)


def watch_processes(trainer: Trainer) -> None:
    """Makes the main process of a machine and the processes that it starts watch each other, even while they wait.

    Args:
        trainer: The trainer, before it starts other processes.
    """
    strategy = trainer.strategy
    if main_process := os.environ.get(MAIN_PROCESS):
        threading.Thread(target=_watch_main_process, args=[int(main_process)], daemon=True).start()
    else:
        replace_script_launcher(strategy, WatchingLauncher)


def _watch_main_process(number: int) -> None:
    while os.getppid() == number:
        time.sleep(1)
    time.sleep(PATIENCE)
    _end_this_process("error: the main process is gone; stopping this process, too", ExitStatus.WRONG_INPUT)


def _end_this_process(why: str, status: int) -> None:
    sys.stdout.flush()
    print(f"lora-lightning: {why}.", file=sys.stderr, flush=True)
    os._exit(status)  # from this thread, because the main thread waits for a process that is gone


@contextmanager
def end_processes_together(trainer: Trainer, remedy: str) -> Iterator[None]:
    """Ends all training processes of this machine when an error or a signal ends this process.

    Args:
        trainer: The trainer of this process.
        remedy: How to continue after a lost process, in words that follow "Once that is fixed,".

    Raises:
        TrainingError: In place of the connection error that the loss of another process caused.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, TrainingStopped):
            set_stop_handler(signal.SIG_IGN)
        who = end_child_processes(trainer.strategy.launcher, patience=5)  # most end by themselves for the same reason
        if trainer.world_size == 1 or not _is_lost_connection(error):
            raise
        if _main_process_is_there():
            raise SystemExit(ExitStatus.WRONG_INPUT) from None  # the main process reports the error
        who = who or f"one of the {trainer.world_size} processes is gone"
        msg = f"{who}; the other processes were stopped after step {trainer.global_step}. Once that is fixed, {remedy}."
        raise TrainingError(msg) from error


def _main_process_is_there() -> bool:
    """Returns whether the process that started this one is still running."""
    main_process = os.environ.get(MAIN_PROCESS)
    if main_process is None:
        return False
    time.sleep(1)  # connections are closed before the process ends
    return os.getppid() == int(main_process)


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in LOST_CONNECTION)


def end_child_processes(launcher: object, patience: float) -> str:
    """Waits for the processes that Lightning started, and kills those that do not end.

    Args:
        launcher: The launcher of this process. Only the main process has started others.
        patience: Seconds to wait. Once a process has failed, the others are killed without waiting.

    Returns:
        How a process failed: one that a signal ended if there is one, because others fail as a consequence. Empty if
        no process failed.
    """
    if not isinstance(launcher, HookedScriptLauncher):
        return ""
    found: dict[int, int] = {}
    end = time.monotonic() + patience
    for rank, process in enumerate(launcher.procs, start=1):
        try:
            if status := process.wait(0 if found else max(0, end - time.monotonic())):
                found[rank] = status
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not found:
        return ""
    rank = min(found, key=lambda rank: (found[rank] > 0, rank))
    status = found[rank]
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    why = ", possibly because the machine ran out of memory" if status == KILLED else ""
    return f"training process {rank} {how}{why}"
