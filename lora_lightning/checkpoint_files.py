"""How files are written, so that a crash at any moment leaves a whole one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lora_lightning.errors import TrainingError
from lora_lightning.lora.checkpoint import read_checkpoint

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
DRAFT = ".draft"  # how the name of a file ends that is not whole yet


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file's place, then moves; reads what is whole, and executes nothing.

    Lightning's own writes to the system's temporary folder, from where a file system away it copies, and does not wait
    for the disk. The former `last.ckpt` stays as `previous.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes one file, whole or not at all.

        Args:
            checkpoint: What to write.
            path: Where to.
            storage_options: Not used.

        Raises:
            TrainingError: If it cannot be written.
        """
        del storage_options
        place = Path(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place, former=place.with_name(PREVIOUS) if place.name == LAST else None) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # the second is PyTorch's own for a full disk
            raise cannot_be_written(place, error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads one file.

        Args:
            path: Which.
            map_location: Not used: tensors are on the CPU.
            weights_only: Not used: nothing else is ever read.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: If it is damaged or foreign.
        """
        del map_location, weights_only
        return read_checkpoint(path)


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
