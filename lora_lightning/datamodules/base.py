"""What every text data module shares: tokenise once, cache, batch by length, predict from a file."""

import hashlib
import json
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_lightning.backbones import load_tokenizer
from lora_lightning.datamodules.batching import LengthGroupedBatchSampler, TokenizedDataset
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics.label_space import LabelSpace

PREDICT = "predict"
SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), PREDICT: (PREDICT,)}


@dataclass(frozen=True)
class Rows:
    """One split before tokenising.

    Attributes:
        texts: The queries.
        labels: Class index of each.
    """

    texts: list[str]
    labels: list[int]


class TextDataModule(LightningDataModule):
    """Base of the data modules: subclasses say where rows come from and what the labels are.

    Args:
        backbone: Whose tokenizer to use; the command line fills it in from `model.backbone`.
        batch_size: Training rows a step and process.
        eval_batch_size: Rows a step and process in validation, test and prediction.
        max_length: Longest text in tokens; longer ones are cut.
        predict_file: Text file with one query a line for `predict`, or `-` for standard input.
        cache_dir: Where tokenised data is kept; `~/.cache/lora_lightning` (or below `$XDG_CACHE_HOME`) if not given.
        num_workers: Processes that build batches; 0 is fastest for short texts.
    """

    def __init__(
        self,
        backbone: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 128,
        predict_file: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                msg = f"data.{name} is {value}, but a batch has at least 1 row."
                raise ConfigurationError(msg)
        if max_length < 3:  # noqa: PLR2004  # a start, one token, an end
            msg = f"data.max_length is {max_length}, but a text has at least 3 tokens with its marks."
            raise ConfigurationError(msg)
        self.backbone = backbone
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_length = max_length
        self.predict_file = predict_file
        self.cache_dir = cache_dir
        self.num_workers = num_workers
        self.splits: dict[str, TokenizedDataset] = {}
        self.predict_texts: list[str] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @abstractmethod
    def load_rows(self) -> dict[str, Rows]:
        """Reads every split.

        Returns:
            Rows by split name: `train`, `val`, `test`.

        Raises:
            DataError: If the data is missing or malformed; names the file and the row.
        """

    @property
    @abstractmethod
    def label_space(self) -> LabelSpace:
        """The labels of the data set; reads the data on first use."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer, loaded on first use.

        Raises:
            ConfigurationError: If no backbone was given.
        """
        if self._tokenizer is None:
            if self.backbone is None:
                msg = "data.backbone is not set; give the same backbone as the model's."
                raise ConfigurationError(msg)
            self._tokenizer = load_tokenizer(self.backbone)
        return self._tokenizer

    def prepare_data(self) -> None:
        """Tokenises and caches, in one process, unless the cache has this data already."""
        if self.trainer is not None and self.trainer.predicting:
            return
        cache = self._cache_file()
        if not cache.is_file():
            self._write_cache(cache)

    def setup(self, stage: str) -> None:
        """Opens the splits that a stage needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        for split in SPLITS_OF_STAGE[stage]:
            if split == PREDICT:
                self.predict_texts = read_queries(self.predict_file)
                token_ids, lengths = flatten_rows(self._tokenize(self.predict_texts))
                self.splits[split] = TokenizedDataset(token_ids, lengths, None, self._pad_token_id)
            elif split not in self.splits:
                self.splits[split] = self._from_cache(split)

    def texts(self, split: str) -> list[str]:
        """The queries of a split, for reports; by row number."""
        return self.predict_texts if split == PREDICT else self.load_rows()[split].texts

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, length-grouped batches of the training split."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation row once, by length."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test row once, by length."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every query of `predict_file` once, by length."""
        return self._loader(PREDICT, self.eval_batch_size)

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

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False)
        return cast("list[list[int]]", encoded["input_ids"])

    def _from_cache(self, split: str) -> TokenizedDataset:
        cache = self._cache_file()
        try:
            saved = load_file(cache)
        except SafetensorError as error:
            msg = f"the tokenised data in {cache} is damaged ({error}); delete the file and start again."
            raise DataError(msg) from error
        token_ids, lengths, labels = (saved[f"{split}.{name}"] for name in ("input_ids", "lengths", "labels"))
        return TokenizedDataset(token_ids, lengths, labels, self._pad_token_id)

    @property
    def _pad_token_id(self) -> int:
        return int(cast("int", self.tokenizer.pad_token_id))

    def _cache_file(self) -> Path:
        """A file named by everything that decides the token ids and labels."""
        root = self.cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lora_lightning"
        digest = hashlib.sha256()
        cut = (self.max_length, self.tokenizer.truncation_side)
        for part in (_tokenizer_state(self.tokenizer), cut, self.label_space.names):
            digest.update(json.dumps(part).encode())
        for split, rows in self.load_rows().items():
            digest.update(json.dumps([split, rows.texts, rows.labels]).encode())
        return Path(root).expanduser() / f"tokenized-{digest.hexdigest()[:32]}.safetensors"

    def _write_cache(self, cache: Path) -> None:
        """Writes beside the final place and renames, so that a half-written cache is never read."""
        tensors: dict[str, NDArray[Any]] = {}
        for split, rows in self.load_rows().items():
            token_ids, lengths = flatten_rows(self._tokenize(rows.texts))
            labels = np.array(rows.labels, dtype=np.int64)
            tensors |= {f"{split}.input_ids": token_ids, f"{split}.lengths": lengths, f"{split}.labels": labels}
        scratch = cache.with_suffix(f".{os.getpid()}")
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, scratch)
            scratch.replace(cache)
        except (OSError, SafetensorError) as error:
            msg = f"tokenised data cannot be kept in {cache.parent} ({error}); set --data.cache_dir."
            raise DataError(msg) from error
        finally:
            with suppress(OSError):  # an error here must not hide the one above
                scratch.unlink()


def flatten_rows(rows: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token ids of many texts as one array.

    Args:
        rows: Token ids of each text.

    Returns:
        All ids one after another, (total tokens,), int32; and the length of each text, (rows,), int64.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.array([token for row in rows for token in row], dtype=np.int32), lengths


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides the ids: the whole fast tokenizer, or the vocabulary where there is only a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    state: dict[str, Any] = json.loads(backend.to_str())
    return {name: value for name, value in state.items() if name not in {"truncation", "padding"}}  # last call's


def read_queries(predict_file: str | None) -> list[str]:
    """Reads the queries to predict, one a line.

    Args:
        predict_file: A text file in UTF-8, or `-` for standard input.

    Returns:
        The lines without their ends; empty lines after the last query are left out.

    Raises:
        DataError: If no file was given, it cannot be read, holds no query, or has an empty line between queries.
    """
    if predict_file is None:
        msg = "predict needs --data.predict_file with a text file of one query a line, or - for standard input."
        raise DataError(msg)
    name = "standard input" if predict_file == "-" else predict_file
    try:
        # Bytes: standard input may have been opened with another encoding, and keeps a byte order mark.
        raw = sys.stdin.buffer.read() if predict_file == "-" else Path(predict_file).expanduser().read_bytes()
        content = raw.decode("utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"--data.predict_file {predict_file}: {_why(error)}; give a UTF-8 text file with one query a line."
        raise DataError(msg) from error
    # Not splitlines(): to it a form feed or U+2028 inside a query ends a line, and row numbers would shift.
    lines = re.split("\r\n|\r|\n", content) if content else []
    check_texts(lines, name, "line")
    if not lines:
        msg = f"{name} holds no query; write one query a line."
        raise DataError(msg)
    return lines


def check_texts(texts: Sequence[str] | Iterable[str], name: str, unit: str) -> None:
    """Refuses empty texts.

    Args:
        texts: In the order of the file.
        name: What to call the file.
        unit: What to call a position in it, for example `line`; counted from 1.

    Raises:
        DataError: At the first empty text.
    """
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            msg = f"{name}, {unit} {number}: the text is empty; remove the row or fill it in."
            raise DataError(msg)


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error.strerror).lower() if error.strerror else type(error).__name__
