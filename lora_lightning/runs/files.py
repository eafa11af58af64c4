"""Writes files and folders atomically: completely or not at all, even if the process or the machine stops."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lora_lightning.errors import TrainingError

DRAFT = ".draft"  # suffix of a file or folder that is not complete yet
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # in the text of errors that tokenizers and safetensors raise


def write_error(path: Path, error: Exception) -> TrainingError:
    """Returns the error for a file or folder of a run that cannot be saved.

    Args:
        path: The file or folder.
        error: The error that occurred.

    Returns:
        The error to raise.
    """
    reason = getattr(error, "strerror", None) or f"is the disk full? {str(error).splitlines()[0]}"
    named = getattr(error, "filename", None)
    if isinstance(named, str) and not Path(named).is_relative_to(path.parent):  # such as a library's own file
        reason += f": {named}"
    return TrainingError(
        f"{path} cannot be written ({reason}); what was saved before is intact. Once that is fixed, repeat the "
        "command; fit resumes its run with --resume auto."
    )


@contextmanager
def atomic_file(path: Path, former: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a draft next to a file. After writing, flushes it to disk and renames it to the final name.

    Args:
        path: The file. Its folder must exist.
        former: Path under which an existing file is kept; `None` to replace it.

    Yields:
        The draft, open for writing.

    Raises:
        OSError: If the draft cannot be written. An existing file is then unchanged.
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
        _wait_for_names(path.parent)
    except BaseException:
        with suppress(OSError):  # an error here must not hide the one above
            draft.unlink()
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 text file with `atomic_file`.

    Args:
        path: The file. Its folder must exist.
        text: The content.

    Raises:
        OSError: If the file cannot be written. An existing file is then unchanged.
    """
    with atomic_file(path) as file:
        file.write(text.encode())


def save_text(path: Path, text: str) -> Path:
    """Writes a UTF-8 text file with `atomic_file`, or says why it cannot be written.

    Args:
        path: The file. Its folder must exist.
        text: The content.

    Returns:
        The file.

    Raises:
        TrainingError: If the file cannot be written. An existing file is then unchanged.
    """
    try:
        write_text_atomically(path, text)
    except OSError as error:
        raise write_error(path, error) from error
    return path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Creates a draft folder next to a folder. Once it is filled, flushes it to disk and renames it to the final name.

    An existing folder is replaced by two renames. Between them, for microseconds, no folder has its name.

    Args:
        path: The folder. Its parent must exist. An existing folder is replaced completely.

    Yields:
        The empty draft folder.

    Raises:
        OSError: If the draft cannot be written. An existing folder is then unchanged.
    """
    draft, former = path.with_name(f".{path.name}{DRAFT}"), path.with_name(f".{path.name}.former{DRAFT}")
    try:
        if former.exists() and not path.exists():  # a killed process had not come to the second rename
            former.replace(path)
        for leftover in (draft, former):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir()
        yield draft
        for file in draft.rglob("*"):
            _wait_for_disk(file)
        if path.exists():
            path.replace(former)
        draft.replace(path)
        _wait_for_names(path.parent)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if former.exists() and not path.exists():
            former.replace(path)
        if not isinstance(error, OSError) and (found := RUST_ERROR.search(str(error))):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def remove_drafts(folder: Path) -> None:
    """Deletes the drafts of a killed process, and restores a folder that was about to be replaced.

    Args:
        folder: The folder, searched recursively.
    """
    for draft in sorted(folder.rglob(f".*{DRAFT}"), reverse=True):
        place = draft.with_name(draft.name.removeprefix(".").removesuffix(f".former{DRAFT}"))
        if draft.name.endswith(f".former{DRAFT}") and not place.exists():
            draft.replace(place)
        elif draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def _wait_for_disk(file: Path) -> None:
    if file.is_file():
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _wait_for_names(folder: Path) -> None:
    """Flushes the file names in a folder to disk, if the operating system supports it."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
