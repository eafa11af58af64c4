"""What every text data module shares, whatever the task: tokenise once, cache, batch by length, predict."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_lightning.backbones import load_tokenizer
from lora_lightning.datamodules.batching import EncodedSplit, LengthGroupedBatchSampler, TokenizedDataset
from lora_lightning.datamodules.prediction_files import check_table_name, write_table
from lora_lightning.datamodules.token_cache import cache_file, read_split, tokenizer_state, write_splits
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics.label_space import LabelSpace

TRAIN, VALIDATION, TEST, PREDICT = "train", "val", "test", "predict"
KINDS_OF_STAGE = {
    "fit": (TRAIN, VALIDATION),
    "validate": (VALIDATION,),
    "test": (TEST,),
    "predict": (PREDICT,),
}
IGNORED_LABEL = -100  # what torch's cross entropy leaves out unless told otherwise


class TextDataModule(LightningDataModule):
    """Base of the data modules: subclasses say where rows come from and how they become tokens.

    A split is called `train`, `val`, `test` or `predict`; where a kind has several splits, `val_matched` and so on.
    The rows of a split are whatever the subclass likes, as long as JSON (or a dataclass of what JSON holds) can tell
    two of them apart: they name the cache.

    Args:
        backbone: Whose tokenizer to use; the command line fills it in from `model.backbone`.
        batch_size: Training rows a step and process.
        eval_batch_size: Rows a step and process in validation, test and prediction.
        predict_file: What `predict` reads.
        cache_dir: Where tokenised data is kept; `~/.cache/lora_lightning` (or below `$XDG_CACHE_HOME`) if not given.
        num_workers: Processes that build batches; 0 is fastest for short texts.
    """

    without_test: ClassVar[str] = "the data has no test split with labels"  # why `test` scores nothing
    predictions_name: ClassVar[str] = "predictions.csv"  # in the run's folder, unless --predictions.file is given

    def __init__(
        self,
        backbone: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        predict_file: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                msg = f"data.{name} is {value}, but a batch has at least 1 row."
                raise ConfigurationError(msg)
        if num_workers < 0:
            msg = f"data.num_workers is {num_workers}, but it must be 0 (batches are built in the process) or more."
            raise ConfigurationError(msg)
        self.backbone = backbone
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.predict_file = predict_file
        self.cache_dir = cache_dir
        self.num_workers = num_workers
        self.splits: dict[str, TokenizedDataset] = {}
        self.prediction_splits: dict[str, Any] = {}

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
    def encode(self, split: str, rows: Any) -> EncodedSplit:
        """Turns a split's rows into tokens and labels.

        Args:
            split: Its name.
            rows: From `load_splits` or `load_prediction_splits`.

        Returns:
            The tokens; not necessarily one row of them for each of `rows`.
        """

    @abstractmethod
    def encoding_settings(self) -> dict[str, Any]:
        """What `encode` depends on beside the rows and the tokenizer, such as the longest text, for JSON."""

    @abstractmethod
    def prediction_inputs(self, split: str) -> list[dict[str, Any]]:
        """What a reader needs beside each prediction, such as its text; by row number (a batch's `index`)."""

    @property
    def label_space(self) -> LabelSpace | None:
        """The labels of the data set; `None` where the task has none."""
        return None

    def padding(self) -> dict[str, int]:
        """What fills the space after a short row, by per-token column."""
        pad_token_id = cast("int", self.tokenizer.pad_token_id)
        return {"input_ids": pad_token_id, "token_type_ids": 0, "labels": IGNORED_LABEL}

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

    @cached_property
    def raw_splits(self) -> dict[str, Any]:
        """The splits with labels, read once."""
        return self.load_splits()

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

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer.

        Raises:
            ConfigurationError: If no backbone was given.
        """
        return load_tokenizer(self.required_backbone)

    @property
    def required_backbone(self) -> str:
        """The backbone's name.

        Raises:
            ConfigurationError: If none was given.
        """
        if self.backbone is None:
            msg = "data.backbone is not set; give the same backbone as the model's."
            raise ConfigurationError(msg)
        return self.backbone

    def prepare_data(self) -> None:
        """Tokenises and caches, in one process, unless the cache has this data already."""
        if self.trainer is not None and self.trainer.predicting:
            return
        if not self.cache_file.is_file():
            encoded = {name: self.encode(name, rows) for name, rows in self.raw_splits.items()}
            write_splits(self.cache_file, encoded)

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
        if stage == PREDICT:
            self.prediction_splits = self.load_prediction_splits()
        self.check_splits(stage)
        for kind in KINDS_OF_STAGE[stage]:
            for name in self.split_names(kind):
                if kind == PREDICT:
                    encoded = self.encode(name, self.prediction_splits[name])
                    self.splits[name] = TokenizedDataset(encoded, self.padding())
                elif name not in self.splits:
                    self.splits[name] = TokenizedDataset(read_split(self.cache_file, name), self.padding())

    @cached_property
    def cache_file(self) -> Path:
        """A file named by everything that decides the tokens and labels."""
        parts = (type(self).__qualname__, tokenizer_state(self.tokenizer), self.encoding_settings())
        return cache_file(self.cache_dir, [*parts, *self.raw_splits.items()])

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
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),  # what seed_everything was called with
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
        )
