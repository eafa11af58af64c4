"""The data module for `tasks.planted_rank`: random inputs. The task computes the targets."""

from typing import Any, ClassVar

import numpy as np

from lora_lightning.datamodules.base import PREDICT, TEST, TRAIN, VALIDATION, AdaptationDataModule
from lora_lightning.datamodules.batching import EncodedSplit, TokenizedDataset
from lora_lightning.errors import ConfigurationError


class PlantedRankDataModule(AdaptationDataModule):
    """Rows of independent standard normal numbers; `predict` takes the rows of `test`.

    Args:
        in_features: Numbers in a row, as many as `model.problem.in_features`.
        train_rows: Rows to train on; at least `in_features`, or they do not determine the update.
        eval_rows: Rows of validation and of test.
        seed: Of the numbers.
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation, test and prediction.
    """

    takes_inputs: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int = 64,
        train_rows: int = 2048,
        eval_rows: int = 256,
        seed: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
    ) -> None:
        super().__init__(batch_size, eval_batch_size)
        if train_rows < in_features or eval_rows < 1:
            msg = (
                f"data.train_rows is {train_rows} and data.eval_rows {eval_rows}, but at least in_features = "
                f"{in_features} rows are needed to train on and 1 to evaluate."
            )
            raise ConfigurationError(msg)
        self.in_features = in_features
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.seed = seed

    def load_splits(self) -> dict[str, Any]:
        """Draws the numbers."""
        random = np.random.default_rng(self.seed)
        rows = {TRAIN: self.train_rows, VALIDATION: self.eval_rows, TEST: self.eval_rows}
        return {
            name: random.standard_normal((count, self.in_features), dtype=np.float32) for name, count in rows.items()
        }

    def load_prediction_splits(self) -> dict[str, Any]:
        """The rows of `test`."""
        return {PREDICT: self.raw_splits[TEST]}

    def open_split(self, name: str) -> TokenizedDataset:
        """A split's rows, of one place each."""
        rows = {**self.raw_splits, **self.prediction_splits}[name]
        return TokenizedDataset(EncodedSplit(np.ones(len(rows), dtype=np.int64), {}, {"inputs": rows}), {})

    def prediction_inputs(self, split: str) -> list[dict[str, Any]]:
        """The row's number; the inputs themselves tell a reader nothing."""
        return [{"row": number} for number in range(len(self.prediction_splits[split]))]
