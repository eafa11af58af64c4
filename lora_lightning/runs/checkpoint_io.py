"""How the trainer writes and reads checkpoints: completely or not at all, and without running any code in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.files import atomic_file, cannot_be_written
from lora_lightning.runs.layout import LAST, PREVIOUS


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a draft beside the file, then moves it; reads only intact files, and runs no code in them.

    Lightning's own writes to the system's temporary folder, from where a file system away it copies, and does not wait
    for the disk. The former `last.ckpt` stays as `previous.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes one file, completely or not at all.

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
            with atomic_file(place, former=place.with_name(PREVIOUS) if place.name == LAST else None) as file:
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
