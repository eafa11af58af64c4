"""Collects the predictions of all processes; the task makes them readable, and the data module writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.datamodules.base import PREDICT
from lora_lightning.tasks import AdaptationTask


class PredictionWriter(BasePredictionWriter):
    """Writes one row per prediction, in the order of the input and in the format of the data module.

    Args:
        file: The file to write. Its extension decides the format, for example `.csv` or `.jsonl`. If it is not given,
            `lora-lightning predict` writes to the checkpoint's run folder, and `lora_lightning.predict` writes no file.
    """

    def __init__(self, file: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.file = file
        self.rows: dict[str, list[dict[str, Any]]] = {}  # by split, on the main process

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gathers the rows of all processes, and writes them on the main process."""
        del batch_indices
        datamodule = cast("AdaptationDataModule", trainer.datamodule)  # type: ignore[attr-defined]
        names = datamodule.split_names(PREDICT)
        # Lightning passes a list of batches, or one such list per loader if there are several.
        own = [predictions] if len(names) == 1 else list(predictions)
        parts: list[Any] = [own]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, own)
        if trainer.is_global_zero:
            task = cast("AdaptationTask", pl_module)
            self.rows = {
                name: task.prediction_rows(
                    [batch for part in parts for batch in part[number]], datamodule.prediction_inputs(name)
                )
                for number, name in enumerate(names)
            }
            if self.file is not None:
                datamodule.write_predictions(self.rows, Path(self.file))

    @property
    def rows_written(self) -> int:
        """Number of predictions in all splits."""
        return sum(len(part) for part in self.rows.values())
