"""The folder that a command writes: refused if it exists, complete or absent, and replaced only after success."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.files import DRAFT, atomic_folder

MODEL = "config.json"  # what a folder with a model has
ADAPTER = "adapter_config.json"  # what a folder with an adapter has
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)


def check_output(output: Path, source: Path | None, *, overwrite: bool, marker: str = MODEL) -> None:
    """Refuses an output folder before any work is done.

    Args:
        output: Where to write.
        source: What is read; must not be replaced. `None` for nothing.
        overwrite: Whether an existing folder may be replaced.
        marker: The file that such a folder has; others are not deleted.

    Raises:
        ConfigurationError: If the folder exists and may not be replaced, or cannot be written.
    """
    if source is not None:
        check_not_read(output, source)
    if output.exists() or output.is_symlink():
        _check_existing(output, overwrite=overwrite, marker=marker)
    parent = next(path for path in output.resolve().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        msg = f"--output {output} cannot be written, because {parent} is not a writable folder; choose another folder."
        raise ConfigurationError(msg)


def check_not_read(output: Path, source: Path) -> None:
    """Refuses to replace what is being read.

    Args:
        output: Where to write.
        source: A run, an adapter or a base model; a hub id is no path.

    Raises:
        ConfigurationError: If `source` is the output folder or inside it.
    """
    here, there = output.resolve(), source.resolve()
    if source.exists() and (here == there or here in there.parents):
        msg = f"--output {output} would replace {source}, which is being read; choose another folder."
        raise ConfigurationError(msg)


def _check_existing(output: Path, *, overwrite: bool, marker: str) -> None:
    if not output.is_dir() or output.is_symlink():
        msg = f"--output {output} is not a folder; choose the name of a folder that does not exist yet."
        raise ConfigurationError(msg)
    if not overwrite:
        msg = f"--output {output} exists; choose another folder, or replace it with --overwrite."
        raise ConfigurationError(msg)
    if any(output.iterdir()) and not (output / marker).is_file():
        kind = {ADAPTER: "an adapter", MODEL: "a model"}.get(marker, "what this command writes")
        msg = (
            f"--output {output} holds other files than {kind} (it has no {marker}), so --overwrite does not delete "
            "it; choose another folder."
        )
        raise ConfigurationError(msg)


@contextmanager
def new_folder(output: Path, *, overwrite: bool = False, marker: str = MODEL) -> Iterator[Path]:
    """Creates a draft next to the output folder, and renames it once it is complete.

    Args:
        output: The final name. Its parents are created, and those that are new are removed again if the work fails.
        overwrite: Whether a folder that has this name at the end may be replaced.
        marker: As in `check_output`.

    Yields:
        The empty draft.

    Raises:
        ConfigurationError: If the disk is full, if the folder cannot be written, if another process is writing it, or
            if somebody else has created one of this name meanwhile; nothing is left of the draft then.
    """
    output = output.absolute()
    created = [path for path in output.parents if not path.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(output), atomic_folder(output) as draft:
            yield draft
            if output.exists() or output.is_symlink():  # the work took minutes
                _check_existing(output, overwrite=overwrite, marker=marker)
    except BaseException as error:
        for folder in created:  # the innermost first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError) and _is_about(error, output.parent):
            why = (error.strerror or str(error)).lower()
            msg = (
                f"--output {output} cannot be written ({why}); nothing was written. Free some space, or choose a "
                "folder on another disk."
            )
            raise ConfigurationError(msg) from error
        raise


@contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    """Keeps other processes out, whose drafts would have the same names; the system releases a killed one's lock."""
    path = output.with_name(f".{output.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        msg = f"--output {output} is being written by another process; wait for it, or choose another folder."
        raise ConfigurationError(msg) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """Creates a folder on the output's disk and deletes it afterwards; a later merge deletes what a killed one left.

    Args:
        output: The output folder.

    Yields:
        The empty folder, next to the output.
    """
    folder = output.absolute().with_name(f".{output.name}.scratch{DRAFT}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error may be about writing into a folder; some libraries do not name the file."""
    if error.errno not in OF_WRITING:
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder)
