"""Locks of folders: one process trains in a run's folder at a time, and one at a time starts a run in a logger's."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.files import write_error
from lora_lightning.runs.layout import LOCK

STARTS = ".starts.lock"  # in the folder of a logger's runs
STARTING = 60.0  # seconds; starting a run takes milliseconds, and the system releases the lock of a killed process
PATIENCE = 1.0  # seconds; a process that checks whether a run is running holds its lock for a moment


def lock_run_folder(run: Path) -> FileLock:
    """Keeps other processes out of a run folder until the lock is released or this process ends.

    Args:
        run: The run folder.

    Returns:
        The acquired lock. Forked data loading processes do not inherit it.

    Raises:
        ConfigurationError: If another process holds the lock, or its file is a symbolic link.
        TrainingError: If the file cannot be written.
    """
    path = run / LOCK
    _check_no_link(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
        path.write_text(f"{os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    except Timeout as error:
        msg = (
            f"another process ({path.read_text(encoding='utf-8').strip()}) is training in the run folder {run}; wait "
            "for it or stop it, or choose another trainer.logger.init_args.name or version."
        )
        raise ConfigurationError(msg) from error
    except OSError as error:
        raise write_error(path, error) from error
    return lock


@contextmanager
def lock_starts(place: Path) -> Iterator[None]:
    """Lets one process at a time look for a run and start it if there is none.

    Args:
        place: The folder of a logger's runs; made if it does not exist.

    Raises:
        ConfigurationError: If another process holds the lock for a minute, or its file is a symbolic link.
        TrainingError: If the file cannot be written.
    """
    path = place / STARTS
    _check_no_link(path)
    lock = FileLock(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=STARTING)
    except Timeout as error:
        msg = f"another process is starting a run in {place} and has not finished for {STARTING:.0f} s; stop it."
        raise ConfigurationError(msg) from error
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _check_no_link(path: Path) -> None:
    if path.is_symlink():
        msg = f"{path} is a symbolic link, and its target would be overwritten; delete the link."
        raise ConfigurationError(msg)


def is_locked(run: Path) -> bool:
    """Returns whether a process is training in a run folder at the moment.

    Args:
        run: The run folder.

    Returns:
        False if none is, or if the lock cannot be checked because of missing permissions.
    """
    return is_lock_held(run / LOCK, if_unknown=False)


def is_lock_held(path: Path, *, if_unknown: bool) -> bool:
    """Returns whether a process holds a lock at the moment.

    Args:
        path: The file of the lock.
        if_unknown: What to return if the lock cannot be checked because of missing permissions.

    Returns:
        False if no process holds it, or if its file does not exist or is a symbolic link.
    """
    if path.is_symlink() or not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return if_unknown
    lock.release()
    return False
