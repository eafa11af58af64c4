"""How files are written, so that a crash at any moment leaves a whole one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lora_lightning.errors import TrainingError

DRAFT = ".draft"  # how the name of a file ends that is not whole yet


def cannot_be_written(path: Path, error: Exception) -> TrainingError:
    """What to say when a part of a run cannot be saved.

    Args:
        path: The file or folder.
        error: Why.

    Returns:
        The error to raise.
    """
    reason = getattr(error, "strerror", None) or f"is the disk full? {str(error).splitlines()[0]}"
    return TrainingError(
        f"{path} cannot be written ({reason}); what was saved before is whole. When that is mended, go on with the "
        "same command and --resume auto."
    )


@contextmanager
def whole_file(path: Path, former: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a draft beside a file's place; once it is written, waits for the disk and moves it: whole or not at all.

    Args:
        path: The file, in a folder that is there.
        former: Where the file that was there before stays.

    Yields:
        The draft, open for writing.

    Raises:
        OSError: If it cannot be written; a file that was there before is as it was.
    """
    draft = path.with_name(f".{path.name}{DRAFT}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None and path.exists():
            path.replace(former)
        draft.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # an error here must not hide the one above
            draft.unlink()
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 by `whole_file`.

    Args:
        path: The file, in a folder that is there.
        text: What to write.

    Raises:
        OSError: If it cannot be written; a file that was there before is as it was.
    """
    with whole_file(path) as file:
        file.write(text.encode())


def _sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
