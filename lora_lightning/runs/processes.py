"""No process of a machine outlives the others that train with it, and one of them says why it ended."""

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
from lora_lightning.runs.signals import ENDING, set_stop_handler

# PyTorch's gloo raises plain RuntimeErrors.
SIGNS = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused")
PATIENCE = 15  # seconds in which a process should notice by itself that another one is gone, and can say more
# Exit statuses of processes that were asked to stop, and that of the main one then.
ASKED = dict.fromkeys((ExitStatus.STOPPED, *(-number for number in ENDING)), ExitStatus.STOPPED)
ASKED |= dict.fromkeys((ExitStatus.INTERRUPTED, -signal.SIGINT), ExitStatus.INTERRUPTED)
MAIN_PROCESS = "LORA_LIGHTNING_MAIN_PROCESS"  # its number, in the environment of those that it starts


class WatchingLauncher(HookedScriptLauncher):
    """Lightning's way to start the other processes of a machine, with another watch over them.

    Lightning's own kills the main process, too, before it can say why.
    """

    def start_processes(self) -> None:
        """Starts the others, and watches them."""
        os.environ[MAIN_PROCESS] = str(os.getpid())
        try:
            super().start_processes()
        finally:
            del os.environ[MAIN_PROCESS]
        threading.Thread(target=self._watch, daemon=True).start()

    def launch(self, *args: object, **kwargs: object) -> object:
        """Starts the others, then does its work.

        Args:
            args: As in Lightning.
            kwargs: As in Lightning.

        Returns:
            What the work returns.
        """
        if not self.cluster_environment.creates_processes_externally:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            self.start_processes()  # Lightning then takes them for started by someone else, and watches none
        return super().launch(*args, **kwargs)  # type: ignore[arg-type]

    def _watch(self) -> None:
        while not any(process.poll() for process in self.procs):
            time.sleep(1)
        asked = next((ASKED[process.returncode] for process in self.procs if process.returncode in ASKED), None)
        time.sleep(PATIENCE if asked is None else 1)
        why = end_children(self, patience=0)
        if asked is not None:  # and so was this process, most likely, but it waits for one that is gone
            _end_this_process(f"stopped, for {why}", asked)
        _end_this_process(f"error: {why}; the others stop", ExitStatus.WRONG_INPUT)


def watch_processes(trainer: Trainer) -> None:
    """Has the main process of a machine and those that it starts watch each other, even while they wait.

    Args:
        trainer: Before it has started other processes.
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
    _end_this_process("error: the main process is gone; this one stops, too", ExitStatus.WRONG_INPUT)


def _end_this_process(why: str, status: int) -> None:
    sys.stdout.flush()
    print(f"lora-lightning: {why}.", file=sys.stderr, flush=True)
    os._exit(status)  # from this thread; the main one waits for a process that is gone


@contextmanager
def ending_together(trainer: Trainer, remedy: str) -> Iterator[None]:
    """Leaves none of the processes of this machine behind when an error or a signal ends this one.

    Args:
        trainer: Of this process.
        remedy: What to do about a lost process, after "Once that is fixed,".

    Raises:
        TrainingError: In place of what the loss of another process led to.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, TrainingStopped):
            set_stop_handler(signal.SIG_IGN)
        who = end_children(trainer.strategy.launcher, patience=5)  # most end by themselves, for the same reason
        if trainer.world_size == 1 or not _is_lost(error):
            raise
        if _main_process_is_there():
            raise SystemExit(ExitStatus.WRONG_INPUT) from None  # and speaks for all
        who = who or f"one of the {trainer.world_size} processes is gone"
        msg = f"{who}; the others stop, here after step {trainer.global_step}. Once that is fixed, {remedy}."
        raise TrainingError(msg) from error


def _main_process_is_there() -> bool:
    """Whether the process that started this one still runs."""
    main_process = os.environ.get(MAIN_PROCESS)
    if main_process is None:
        return False
    time.sleep(1)  # its connections end before it does
    return os.getppid() == int(main_process)


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def end_children(launcher: object, patience: float) -> str:
    """Collects the processes that Lightning started, so that none is left.

    Args:
        launcher: The main process's; others have started none.
        patience: Seconds to wait for them; those that have not ended by then, or once one ended badly, are killed.

    Returns:
        How the first one ended that did not end well, best one by a signal: others end because it is gone. Empty where
        all did.
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
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    why = ", as it happens when memory is short" if status == -signal.SIGKILL else ""
    return f"training process {rank} {how}{why}"
