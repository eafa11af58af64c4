"""How files and folders are written: completely or not at all, whenever the process or the machine stops."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lora_lightning.errors import TrainingError

DRAFT = ".draft"  # ends the name of a file or folder that is not complete yet
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # in the text of errors that tokenizers and safetensors raise


def cannot_be_written(path: Path, error: Exception) -> TrainingError:
    """Words the error for a part of a run that cannot be saved.

    Args:
        path: The file or folder.
        error: The reason.

    Returns:
        The error to raise.
    """
    reason = getattr(error, "strerror", None) or f"is the disk full? {str(error).splitlines()[0]}"
    return TrainingError(
        f"{path} cannot be written ({reason}); what was saved before is intact. Once that is fixed, resume with the "
        "same command and --resume auto."
    )


@contextmanager
def atomic_file(path: Path, former: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a draft beside a file; once it is written, waits for the disk and moves the draft to the file's place.

    Args:
        path: The file, in a folder that exists.
        former: Where the file that was there before is kept.

    Yields:
        The draft, open for writing.

    Raises:
        OSError: If it cannot be written; a file that was there before is unchanged.
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
    """Writes a text file in UTF-8 by `atomic_file`.

    Args:
        path: The file, in a folder that exists.
        text: The content.

    Raises:
        OSError: If it cannot be written; a file that was there before is unchanged.
    """
    with atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Makes a draft folder beside a folder; once it is filled, waits for the disk and puts the draft in its place.

    Between the two renames that replace an existing folder nothing has its name, for microseconds.

    Args:
        path: The folder, in a folder that exists; an existing one is replaced as a whole.

    Yields:
        The empty draft folder.

    Raises:
        OSError: If it cannot be written; a folder that was there before is unchanged.
    """
    draft, former = path.with_name(f".{path.name}{DRAFT}"), path.with_name(f".{path.name}.former{DRAFT}")
    try:
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
    """Deletes what a killed process had not completed, and puts a folder back that was about to be replaced.

    Args:
        folder: With everything inside.
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
    """Waits until the names in a folder are on the disk, if the system can."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
