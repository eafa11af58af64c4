"""Write what `predict` found as CSV or JSON lines."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lora_lightning.datamodules import TextDataModule
from lora_lightning.datamodules.base import PREDICT
from lora_lightning.errors import ConfigurationError
from lora_lightning.tasks import SequenceClassificationTask

SUFFIXES = (".csv", ".jsonl")
DIGITS = 6


class PredictionWriter(BasePredictionWriter):
    """Writes one row a query, in the order of the input: text, intent, score, out-of-scope score, decision.

    Args:
        file: Where to; the ending decides the format: `.csv` or `.jsonl`. Without it, `predictions.csv` in the
            checkpoint's run folder.
    """

    def __init__(self, file: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        if file is not None and Path(file).suffix not in SUFFIXES:
            msg = f"--predictions.file is {file!r}, but its ending must be {' or '.join(SUFFIXES)}."
            raise ConfigurationError(msg)
        self.file = file

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gathers every process's rows and writes them in one place."""
        del batch_indices
        parts: list[list[dict[str, Tensor]]] = [list(predictions)]
        if trainer.world_size > 1:
            parts = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, list(predictions))
        if trainer.is_global_zero:
            task = cast("SequenceClassificationTask", pl_module)
            texts = cast("TextDataModule", trainer.datamodule).texts(PREDICT)  # type: ignore[attr-defined]
            batches = [batch for part in parts for batch in part]
            write_rows(Path(self.file or "predictions.csv"), prediction_rows(batches, texts, task.labels.names))


def prediction_rows(
    batches: Iterable[dict[str, Tensor]], texts: Sequence[str], label_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Turns batches of `predict_step` into readable rows.

    Args:
        batches: From `SequenceClassificationTask.predict_step`.
        texts: The queries, by `index`.
        label_names: Class names, by index.

    Returns:
        Rows in the order of `texts`.
    """
    rows = {}
    for batch in batches:
        columns = [
            batch[name].tolist() for name in ("index", "intent", "score", "out_of_scope_score", "is_out_of_scope")
        ]
        for index, intent, score, outside, is_outside in zip(*columns, strict=True):
            rows[index] = {
                "text": texts[index],
                "intent": label_names[intent],
                "score": round(score, DIGITS),
                "out_of_scope_score": round(outside, DIGITS),
                "decision": "out_of_scope" if is_outside else "in_scope",
            }
    return [rows[index] for index in sorted(rows)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as CSV or as JSON lines, by the file's ending.

    Args:
        path: The file; its folder is made if needed.
        rows: At least one.

    Raises:
        ConfigurationError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as stream:
            if path.suffix == ".csv":
                writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            else:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        msg = f"the predictions cannot be written to {path} ({error.strerror}); choose another --predictions.file."
        raise ConfigurationError(msg) from error
