"""The lock of a study's journal file."""

import os
from pathlib import Path

from filelock import FileLock
from optuna.storages.journal import JournalFileOpenLock


class JournalLock(JournalFileOpenLock):
    """Lets one process at a time append to the journal, and removes what a killed process left unfinished.

    Optuna's own locks are files that a killed process leaves behind; it waits 30 s before it takes them over.

    Args:
        journal: The journal file.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        """Waits for the lock, and cuts off an incomplete last line."""
        self._lock.acquire()
        try:
            cut_incomplete_line(self._journal)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Releases the lock."""
        self._lock.release()


def cut_incomplete_line(path: Path) -> None:
    """Removes the end of a file after its last line break.

    Args:
        path: The file; may be missing. No other process may be writing to it.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        position = size
        while position > 0:
            start = max(0, position - 4096)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < size:
            file.truncate(position)
