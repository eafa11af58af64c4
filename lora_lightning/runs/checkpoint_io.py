"""Lightning's plugin for checkpoint files: writes atomically, reads with `checkpoint.read_checkpoint`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.files import atomic_file, write_error
from lora_lightning.runs.layout import LAST, PREVIOUS


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, reads only intact files, and never executes code in them.

    Lightning's own plugin may copy from a temporary folder on another file system, and does not flush to disk. The
    previous `last.ckpt` is kept as `previous.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint completely or not at all.

        Args:
            checkpoint: The checkpoint.
            path: The file.
            storage_options: Not used.

        Raises:
            TrainingError: If the file cannot be written.
        """
        del storage_options
        place = Path(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(place, former=place.with_name(PREVIOUS) if place.name == LAST else None) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError if the disk is full
            raise write_error(place, error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint.

        Args:
            path: The file.
            map_location: Not used; tensors are on the CPU.
            weights_only: Not used; it is always true.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: If the file is damaged, or is not a checkpoint of this program.
        """
        del map_location, weights_only
        return read_checkpoint(path)
