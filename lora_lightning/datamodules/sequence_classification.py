"""Base of the data modules for `tasks.sequence_classification`: texts or pairs of texts, each with a label."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lightning.backbones import uses_token_types
from lora_lightning.datamodules.base import PREDICT, TEST, TRAIN
from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.datamodules.queries import read_queries
from lora_lightning.datamodules.repeated_texts import warn_about_repeated_texts, warn_about_shared_texts
from lora_lightning.datamodules.special_tokens import note_on_control_tokens, note_on_split_tokens
from lora_lightning.datamodules.text_base import TextDataModule
from lora_lightning.datamodules.tokenizing import TokenizedTexts, tokenize_texts
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.label_space import MULTI_LABEL, OUT_OF_SCOPE_TARGET, REGRESSION, LabelSpace

MOST_TOKENS = 2**31


@dataclass(frozen=True)
class LabeledTexts:
    """One split before tokenizing.

    Attributes:
        texts: The texts, or the first ones of the pairs.
        labels: Of each text: a class index, a number to predict, or one 0.0 or 1.0 a class; `None` in prediction.
        pairs: The second text of each row; `None` where there is one text only.
    """

    texts: list[str]
    labels: Sequence[int] | Sequence[float] | Sequence[Sequence[float]] | None = None
    pairs: list[str] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.texts)

    def take(self, chosen: NDArray[np.bool_]) -> "LabeledTexts":
        """Some of the rows.

        Args:
            chosen: shape (rows,), bool.

        Returns:
            These rows, in their order.
        """

        def choose(column: Any) -> Any:
            return None if column is None else [cell for cell, wanted in zip(column, chosen, strict=True) if wanted]

        return LabeledTexts(choose(self.texts), choose(self.labels), choose(self.pairs))

    def keys(self) -> list[tuple[str, ...]]:
        """The text, or both texts, of each row."""
        columns = (self.texts,) if self.pairs is None else (self.texts, self.pairs)
        return list(zip(*columns, strict=True))


class ClassificationDataModule(TextDataModule):
    """Base of the data modules for `SequenceClassificationTask`.

    Args:
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation, test and prediction.
        max_length: Maximum number of tokens per text; longer texts are truncated.
        predict_file: Text file with one query per line for `predict`, or `-` for standard input.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches; 0 is fastest for short texts.
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
        super().__init__(
            backbone=backbone,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            predict_file=predict_file,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        if max_length < 3:  # noqa: PLR2004  # a start, one token, an end
            msg = f"data.max_length is {max_length}, but a text has at least 3 tokens with its marks."
            raise ConfigurationError(msg)
        if max_length >= MOST_TOKENS:
            msg = f"data.max_length is {max_length}, but a tokenizer counts to {MOST_TOKENS - 1}."
            raise ConfigurationError(msg)
        self.max_length = max_length

    @property
    @abstractmethod
    def label_space(self) -> LabelSpace:
        """The labels of the data set; reads the data on first use."""

    @abstractmethod
    def load_splits(self) -> dict[str, LabeledTexts]:
        """Reads and checks `train`, `val` and `test`."""

    def label_counts(self) -> tuple[NDArray[np.int64], int]:
        """How many training rows have each label, (labels,) int64, and how many there are; not for regression."""
        labels = np.asarray(self.raw_splits[TRAIN].labels)
        if labels.ndim > 1:
            return (labels > 0).sum(axis=0), len(labels)
        return np.bincount(labels[labels != OUT_OF_SCOPE_TARGET], minlength=len(self.label_space.names)), len(labels)

    def content(self, split: str) -> Any:
        """Texts, and labels by their names: their numbers depend on the other labels."""
        rows: LabeledTexts = self.raw_splits[split]
        space, labels = self.label_space, rows.labels
        if labels is None or space.problem_type == REGRESSION:
            return rows
        if space.problem_type == MULTI_LABEL:
            return [rows.keys(), [self._names_that_apply(row) for row in labels]]
        return [rows.keys(), self._readable(labels)]

    def warn_about_repeated_texts(self, splits: Mapping[str, LabeledTexts]) -> None:
        """Warns about texts that several splits share, and about those with different labels.

        Args:
            splits: All splits with labels.
        """
        texts = {name: rows.keys() for name, rows in splits.items()}
        if self.label_space.problem_type == REGRESSION:
            warn_about_repeated_texts(texts)
        else:
            labels = {name: self._readable(rows.labels or ()) for name, rows in splits.items()}
            warn_about_repeated_texts(texts, labels)

    def warn_about_shared_texts(self, splits: Mapping[str, LabeledTexts]) -> None:
        """Warns about held-out test pairs that share one of both texts with a training pair.

        Args:
            splits: With `train`, and `test` from `test_share`.
        """
        if splits[TEST].pairs is not None:  # equal single texts are repeated ones
            warn_about_shared_texts(splits[TRAIN].keys(), splits[TEST].keys())

    def _readable(self, labels: Sequence[Any]) -> list[str]:
        """The name, or the names, of each row's label."""
        names = self.label_space.names
        if self.label_space.problem_type == MULTI_LABEL:
            return [", ".join(self._names_that_apply(row)) or "none" for row in labels]
        return ["out of scope" if label == OUT_OF_SCOPE_TARGET else names[label] for label in labels]

    def _names_that_apply(self, row: Any) -> list[str]:
        return [name for name, applies in zip(self.label_space.names, row, strict=True) if applies]

    def load_prediction_splits(self) -> dict[str, LabeledTexts]:
        """The queries of `predict_file`, one a line."""
        return {PREDICT: LabeledTexts(read_queries(self.predict_file))}

    def _most_tokens(self, pairs: bool) -> int | None:
        """The backbone's positions, if `max_length` and they leave room for text between the special tokens."""
        needed = self.tokenizer.num_special_tokens_to_add(pair=pairs) + 1 + pairs
        if self.max_length < needed:
            unit = "pair of texts" if pairs else "text"
            msg = (
                f"data.max_length is {self.max_length}, but a {unit} takes at least {needed} tokens with the special "
                f"tokens; set it to {needed} or more."
            )
            raise ConfigurationError(msg)
        return self.position_limit(needed)

    def encode(self, split: str, rows: LabeledTexts) -> EncodedSplit:
        """Encodes each text as a row of tokens, with its label as `labels`: int64 classes or float32 numbers."""
        del split
        # A single text needs no types: the model takes all of its tokens for the first text.
        token_types = rows.pairs is not None and uses_token_types(self.model_config)
        limit = self._most_tokens(rows.pairs is not None)
        found = tokenize_texts(
            self.tokenizer, rows.texts, rows.pairs, self.max_length, token_types, self._split_special_tokens
        )
        if limit is not None and len(found.lengths) and found.lengths.max() > limit:
            msg = (
                f"data.max_length is {self.max_length} and there is a text of {found.lengths.max()} tokens, but the "
                f"backbone {self.backbone} has {limit} positions; set data.max_length to at most {limit}."
            )
            raise ConfigurationError(msg)
        columns = {}
        if rows.labels is not None:
            labels = np.asarray(rows.labels)
            columns["labels"] = labels.astype("f4" if labels.dtype.kind == "f" else "i8")
        return EncodedSplit(found.lengths, found.tokens, columns, self._notes(rows, found))

    @property
    def _split_special_tokens(self) -> bool:
        """BART's and T5's classifiers read the last end token, and refuse a batch in which some rows have more."""
        return bool(self.model_config.is_encoder_decoder)

    def _notes(self, rows: LabeledTexts, found: TokenizedTexts) -> tuple[str, ...]:
        notes: tuple[str, ...] = ()
        if found.cut:
            unit, part = ("texts", "their") if rows.pairs is None else ("pairs", "a text's")
            side = "end" if self.tokenizer.truncation_side == "right" else "beginning"
            counted = f"{found.cut} of {len(rows.texts)} {unit}"
            notes += (f"{counted} are longer than data.max_length {self.max_length} and lost {part} {side}.",)
        note = note_on_split_tokens if self._split_special_tokens else note_on_control_tokens
        return notes + note(self.tokenizer, [*rows.texts, *(rows.pairs or [])])

    def encoding_settings(self) -> dict[str, Any]:
        """Where texts are cut, how special tokens in them are read, and what the class indices mean."""
        return {
            "max_length": self.max_length,
            "truncation_side": self.tokenizer.truncation_side,
            "token_types": uses_token_types(self.model_config),
            "split_special_tokens": self._split_special_tokens,
            "labels": self.label_space.names,
        }

    def texts(self, split: str) -> list[str]:
        """The texts of a split, for reports; by row number."""
        rows: LabeledTexts = (self.prediction_splits if split in self.prediction_splits else self.raw_splits)[split]
        return rows.texts

    def prediction_inputs(self, split: str) -> list[dict[str, Any]]:
        """The text of each row, and the second one of a pair."""
        rows: LabeledTexts = self.prediction_splits[split]
        if rows.pairs is None:
            return [{"text": text} for text in rows.texts]
        return [{"text": text, "text_pair": pair} for text, pair in zip(rows.texts, rows.pairs, strict=True)]
