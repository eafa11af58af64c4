"""The lock of a run's folder: one process trains there at a time."""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.files import cannot_be_written
from lora_lightning.runs.layout import LOCK

PATIENCE = 1.0  # seconds; whoever looks whether a run is running holds its lock for a moment


def lock_run_folder(run: Path) -> FileLock:
    """Keeps other processes out of a run's folder until the lock is released, at most until this process ends.

    Args:
        run: The folder.

    Returns:
        The acquired lock. Processes that are forked to load data do not inherit it.

    Raises:
        ConfigurationError: If another process holds the lock, or its file is a symbolic link.
        TrainingError: If the file cannot be written.
    """
    path = run / LOCK
    if path.is_symlink():
        msg = f"{path} is a symbolic link, whose target would be overwritten; delete the link."
        raise ConfigurationError(msg)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
        path.write_text(f"{os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    except Timeout as error:
        msg = (
            f"another process ({path.read_text(encoding='utf-8').strip()}) trains in the run folder {run}; wait for it "
            "or stop it, or choose another trainer.logger.init_args.name or version."
        )
        raise ConfigurationError(msg) from error
    except OSError as error:
        raise cannot_be_written(path, error) from error
    return lock


def is_locked(run: Path) -> bool:
    """Whether a process trains in a run's folder at the moment.

    Args:
        run: The folder.

    Returns:
        False if nobody does, or if this user may not look.
    """
    path = run / LOCK
    if path.is_symlink() or not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False
