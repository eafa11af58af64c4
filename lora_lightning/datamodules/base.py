"""What the command line, the tasks and the callbacks ask of any data module: named splits, batches, predictions."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_lightning.compat.lightning import batch_progress
from lora_lightning.datamodules.batching import LateDataLoader, LengthGroupedBatchSampler, TokenizedDataset
from lora_lightning.datamodules.content_hash import content_hash, former_content_hash
from lora_lightning.datamodules.prediction_files import check_table_name, save_records, write_table
from lora_lightning.errors import CheckpointError, ConfigurationError, DataError
from lora_lightning.metrics.label_space import LabelSpace

TRAIN, VALIDATION, TEST, PREDICT = "train", "val", "test", "predict"
KINDS_OF_STAGE = {
    "fit": (TRAIN, VALIDATION),
    "validate": (VALIDATION,),
    "test": (TEST,),
    "predict": (PREDICT,),
}


class AdaptationDataModule(LightningDataModule):
    """Base of the data modules: subclasses say where rows come from and what a split's dataset is.

    A split is called `train`, `val`, `test` or `predict`; where a kind has several splits, `val_matched` and so on.

    Args:
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation, test and prediction.
        predict_file: What `predict` reads.
        num_workers: Worker processes that build batches; 0 is fastest for small rows.
    """

    without_test = "the data has no test split with labels"  # why nothing is tested, if there is none
    takes_inputs: ClassVar[bool] = True  # whether `predict_file` is read; otherwise `predict` has rows of its own
    predicts_records: ClassVar[bool] = False  # whether `predict_file` may be JSON lines
    predictions_name: ClassVar[str] = "predictions.csv"  # in the run's folder, unless --predictions.file is given

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        predict_file: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                msg = f"data.{name} is {value}, but it must be at least 1 row."
                raise ConfigurationError(msg)
        if num_workers < 0:
            msg = f"data.num_workers is {num_workers}, but it must be 0 (batches are built in the process) or more."
            raise ConfigurationError(msg)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.predict_file = predict_file
        self.num_workers = num_workers
        self.splits: dict[str, TokenizedDataset] = {}
        self.held_out_splits: set[str] = set()  # whose rows `load_splits` takes from the training data
        self.prediction_splits: dict[str, Any] = {}
        self._start = (0, 0)

    @abstractmethod
    def load_splits(self) -> dict[str, Any]:
        """Reads and checks the splits with labels; called once, through `raw_splits`.

        Returns:
            Rows by split name.

        Raises:
            DataError: If the data is missing or malformed; names the file and the row.
        """

    @abstractmethod
    def load_prediction_splits(self) -> dict[str, Any]:
        """Reads and checks what to predict, without touching the training data.

        Returns:
            Rows by split name, usually `predict` alone.

        Raises:
            DataError: If there is nothing to predict, or it is malformed; names the file and the row.
        """

    @abstractmethod
    def open_split(self, name: str) -> TokenizedDataset:
        """Makes a split's dataset.

        Args:
            name: Of `raw_splits` or `prediction_splits`.

        Returns:
            The dataset; rows without tokens have per-row columns only, and length 1.
        """

    @abstractmethod
    def prediction_inputs(self, split: str) -> list[dict[str, Any]]:
        """What a reader needs beside each prediction, such as its text; by row number (a batch's `index`)."""

    @property
    def label_space(self) -> LabelSpace | None:
        """The labels of the data set; `None` where the task has none."""
        return None

    def label_counts(self) -> tuple[NDArray[np.int64], int]:
        """How many training rows have each label, (labels,) int64, and how many there are, for `model.class_weight`.

        Raises:
            ConfigurationError: If this data module does not count them.
        """
        msg = (
            f"model.class_weight is balanced, but {type(self).__name__} does not count the training rows of each "
            "label; give the weights by label."
        )
        raise ConfigurationError(msg)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """What goes with exported weights; `None` where nothing is text."""
        return None

    @property
    def hub_dataset(self) -> str | None:
        """The hub id of the data set, for model cards; `None` for data of the user's own."""
        return None

    def check_predictions_file(self, path: Path) -> None:
        """Refuses a place for the predictions that `write_predictions` cannot use, before any weights load.

        Args:
            path: `--predictions.file`.

        Raises:
            ConfigurationError: If it does not fit.
        """
        check_table_name(path)

    def write_predictions(self, predictions: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
        """Writes what `predict` found; here one table with a row for each prediction.

        Args:
            predictions: Readable rows by split, in the order of the input.
            path: `--predictions.file`, or `predictions_name` in the run's folder.

        Raises:
            ConfigurationError: If the file cannot be written.
        """
        write_table(path, [row for rows in predictions.values() for row in rows])

    def save_inputs(self, inputs: Sequence[Any], folder: Path) -> Path:
        """Writes what to predict into a file that `predict_file` takes: one text per line, or one record.

        Args:
            inputs: Texts; or mappings from column names to values, of a data module that `predicts_records`.
            folder: Where to.

        Returns:
            The file.

        Raises:
            DataError: If an input is neither a text of one line nor such a mapping, or if there are both.
        """
        if self.predicts_records and inputs and all(isinstance(row, Mapping) for row in inputs):
            return save_records(inputs, folder / "inputs.jsonl")
        for number, text in enumerate(inputs, start=1):
            if not isinstance(text, str) or len(text.splitlines()) > 1:
                remedy = "replace its line ends"
                if self.predicts_records:
                    remedy = "or give all inputs as mappings, such as {'text': ...}, which may have several lines"
                msg = f"input {number} is {str(text)[:60]!r}, but a text of one line is needed; {remedy}."
                raise DataError(msg)
        path = folder / "inputs.txt"
        path.write_text("".join(f"{text}\n" for text in inputs), encoding="utf-8")
        return path

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of each split's rows, by split: the same rows in the same order have the same one."""
        return {name: content_hash(self.content(name)) for name in self.raw_splits}

    @cached_property
    def former_fingerprint(self) -> dict[str, str]:
        """The same as earlier releases recorded it, to compare with their runs; it counts the files' paths, too."""
        return {name: former_content_hash(rows) for name, rows in self.raw_splits.items()}

    def content(self, split: str) -> Any:
        """What makes the rows of a split the same as others: neither where they are, nor how labels are numbered.

        Args:
            split: Of `raw_splits`.

        Returns:
            What `content_hash` takes; here the rows themselves.
        """
        return self.raw_splits[split]

    @cached_property
    def raw_splits(self) -> dict[str, Any]:
        """The splits with labels, read once."""
        return self.load_splits()

    def split_sizes(self) -> dict[str, str]:
        """Counts the rows of each split with labels, in words, such as `"2,241 rows"`."""
        return {name: self.size_of(rows) for name, rows in self.raw_splits.items()}

    def size_of(self, rows: Any) -> str:
        """Counts the rows of a split, in words; those of a user's own data module may be anything."""
        return f"{len(rows):,} rows" if isinstance(rows, Sized) else "an unknown number of rows"

    def split_names(self, kind: str) -> list[str]:
        """The splits of a kind.

        Args:
            kind: `train`, `val`, `test` or `predict`.

        Returns:
            `[kind]`, or the names that start with it, such as `val_matched` and `val_mismatched`, in the order of
            the loaders; empty where the data has none.
        """
        names = self.prediction_splits if kind == PREDICT else self.raw_splits
        return [name for name in names if name == kind or name.startswith(f"{kind}_")]

    def check_splits(self, stage: str) -> None:
        """Refuses data that lacks a split.

        Args:
            stage: Which needs it: `fit`, `validate`, `test` or `predict`.

        Raises:
            DataError: If there is none of its kind.
        """
        for kind in KINDS_OF_STAGE[stage]:
            if not self.split_names(kind):
                why = self.without_test if kind == TEST else f"the data has no {kind} split with labels"
                msg = f"{why}; there is {', '.join(self.raw_splits)}."
                raise DataError(msg)

    def setup(self, stage: str) -> None:
        """Opens the splits that a stage needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            DataError: If the data has no such split.
        """
        if stage == "fit":
            self._start = (0, 0)  # of this training; a checkpoint is loaded after this
        if stage == PREDICT:
            self.prediction_splits = self.load_prediction_splits()
        self.check_splits(stage)
        for kind in KINDS_OF_STAGE[stage]:
            for name in self.split_names(kind):
                if kind == PREDICT or name not in self.splits:
                    self.splits[name] = self.open_split(name)

    def state_dict(self) -> dict[str, Any]:
        """Where training is, and what the order of its batches depends on."""
        if self.trainer is None or TRAIN not in self.splits:
            return {}
        batches = batch_progress(self.trainer).current.completed
        if batches >= self.trainer.num_training_batches:
            batches = 0  # the epoch is over
        return {"epoch": self.trainer.current_epoch, "batches": batches, **self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets training go on with the batch after the checkpoint's.

        Args:
            state_dict: What `state_dict` returned when the checkpoint was written.

        Raises:
            CheckpointError: If the checkpoint is from the middle of an epoch of other batches.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        for name, value in self._order().items() if state_dict["batches"] else ():
            if state_dict.get(name, value) != value:  # a checkpoint of an older version has no lengths
                msg = (
                    f"the checkpoint was made in the middle of an epoch with other batches: {name} is {value} here and "
                    f"{state_dict[name]} in the checkpoint; use the config.yaml of its run, or a checkpoint from the "
                    "end of an epoch."
                )
                raise CheckpointError(msg)
        self._start = (state_dict["epoch"], state_dict["batches"])

    def _order(self) -> dict[str, Any]:
        processes = self.trainer.world_size if self.trainer else 1
        lengths = self.splits[TRAIN].lengths
        return {
            "rows of the training split": len(lengths),
            "hash of the rows' lengths in tokens": hashlib.sha256(lengths.astype("<i8").tobytes()).hexdigest()[:16],
            "rows a step (data.batch_size times processes)": self.batch_size * processes,
            "seed_everything": _seed(),
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, length-grouped batches of the training split."""
        return self._loader(TRAIN, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Every validation row once, by length; a list where there are several validation splits."""
        return self._evaluation_loaders(VALIDATION)

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Every test row once, by length; a list where there are several test splits."""
        return self._evaluation_loaders(TEST)

    def predict_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Every row to predict once, by length; a list where there are several files to write."""
        return self._evaluation_loaders(PREDICT)

    def _evaluation_loaders(self, kind: str) -> DataLoader[Any] | list[DataLoader[Any]]:
        loaders = [self._loader(name, self.eval_batch_size) for name in self.split_names(kind)]
        return loaders[0] if len(loaders) == 1 else loaders

    def _loader(self, split: str, batch_size: int, shuffle: bool = False) -> DataLoader[Any]:
        dataset = self.splits[split]
        sampler = LengthGroupedBatchSampler(
            dataset.lengths,
            batch_size,
            shuffle=shuffle,
            seed=_seed(),
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            start=(lambda: self._start) if shuffle else None,
        )
        return LateDataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
        )


def _seed() -> int:
    """What seed_everything was called with."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
