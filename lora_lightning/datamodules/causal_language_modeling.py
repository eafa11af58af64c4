"""Base of the data modules for causal language modeling: context length, prompts. The task is in `tasks`."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_lightning.datamodules.base import PREDICT, TEST, TRAIN
from lora_lightning.datamodules.batching import EncodedSplit, TokenizedDataset
from lora_lightning.datamodules.queries import read_queries
from lora_lightning.datamodules.records import RECORD_FILES, Record, read_records
from lora_lightning.datamodules.special_tokens import note_on_control_tokens
from lora_lightning.datamodules.text_base import TextDataModule
from lora_lightning.datamodules.tokenizing import flatten_rows
from lora_lightning.datamodules.validation_share import check_hold_out
from lora_lightning.errors import ConfigurationError

FEWEST_TOKENS = 2  # one token says nothing about the next
NO_DOCUMENT = -1


def check_files(files: Mapping[str, str | None]) -> None:
    """Refuses validation and test files without a training file, because nothing would read them.

    Args:
        files: By `train`, `val` and `test`.

    Raises:
        ConfigurationError: If there is a validation or test file but no training file.
    """
    options = {"val": "validation_file", "test": "test_file"}
    for split, option in options.items():
        if files[split] is not None and files["train"] is None:
            msg = f"data.{option} is {files[split]!r}, but it is read only together with data.train_file; set that too."
            raise ConfigurationError(msg)


@dataclass(frozen=True)
class Prompt:
    """Something to continue.

    Attributes:
        shown: As the user wrote it, for the table of predictions.
        text: As the model reads it.
    """

    shown: str
    text: str


class CausalLMDataModule(TextDataModule):
    """Base of the data modules for `CausalLanguageModelingTask`.

    Args:
        context_length: Number of tokens in the model's context.
        validation_share: Share of the training data to validate on if there is no validation split, in (0, 1).
        test_share: Share of the training data to test on if there is no test split, in (0, 1); `null` for none. It is
            taken before `validation_share`.
        split_seed: Seed of the choice of these parts, which are the same for every `seed_everything`.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training blocks per step and process.
        eval_batch_size: Blocks, or prompts, per step and process in validation, test and prediction.
        predict_file: What `predict` continues: a text file with one prompt per line, `-` for standard input, or
            records.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches.
    """

    predicts_records: ClassVar[bool] = True

    def __init__(
        self,
        context_length: int = 512,
        validation_share: float = 0.05,
        test_share: float | None = None,
        split_seed: int = 0,
        backbone: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 8,
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
        if context_length < FEWEST_TOKENS:
            msg = f"data.context_length is {context_length}, but it must be at least 2 tokens."
            raise ConfigurationError(msg)
        check_hold_out(validation_share, test_share, split_seed)
        self.context_length = context_length
        self.validation_share = validation_share
        self.test_share = test_share
        self.split_seed = split_seed
        self.prompt_places: list[str] = []  # file and line of each prompt to predict

    @abstractmethod
    def read_splits(self) -> dict[str, Any]:
        """Reads and checks `train`, `val` and, if the data has one, `test`."""

    def hold_out(self, split: str) -> tuple[str, float]:
        """Notes that the rows of a split come from the training data.

        Args:
            split: `val` or `test`.

        Returns:
            The split's name in options, and which share of the training data it gets.
        """
        self.held_out_splits.add(split)
        return ("test", self.test_share or 0.0) if split == TEST else ("validation", self.validation_share)

    @abstractmethod
    def encode_examples(self, rows: Any, *, by_document: bool = False) -> EncodedSplit:
        """Encodes the rows of a split.

        Args:
            rows: From `read_splits`.
            by_document: Whether to add `document`, the number of the document that each label belongs to.

        Returns:
            Per token `input_ids`, `labels` (the next token or -100), and `position_ids` of packed documents.
        """

    @abstractmethod
    def count_documents(self, rows: Any) -> int:
        """Counts the documents of a split, which `document` numbers; a document may have no label."""

    def document_count(self, split: str) -> int:
        """Counts the documents of a split with labels.

        Args:
            split: `train`, `val` or `test`.

        Returns:
            Their number; it depends neither on the tokenizer nor on `context_length`.
        """
        return self.count_documents(self.raw_splits[split])

    @abstractmethod
    def render_prompt(self, prompt: str | Record) -> Prompt:
        """Puts a prompt into the form that the model was trained on.

        Args:
            prompt: A text, or a record of a JSON lines file.
        """

    def load_splits(self) -> dict[str, Any]:
        """Checks the context length against the model, then reads the data.

        Raises:
            ConfigurationError: If the model cannot take so many tokens.
        """
        limit = self.position_limit(FEWEST_TOKENS)
        if limit is not None and self.context_length > limit:
            msg = (
                f"data.context_length is {self.context_length}, but {self.backbone} has only {limit} positions; set "
                f"it to at most {limit}."
            )
            raise ConfigurationError(msg)
        return self.read_splits()

    def encode(self, split: str, rows: Any) -> EncodedSplit:
        """Blocks to learn from, or prompts as they are."""
        if split == PREDICT:
            encoded = self._encode_prompts(rows)
            notes = self._note_on_long_prompts(encoded.lengths)
            return replace(encoded, notes=notes + note_on_control_tokens(self.tokenizer, [row.shown for row in rows]))
        return self.encode_examples(rows, by_document=split != TRAIN)

    def _note_on_long_prompts(self, lengths: NDArray[np.int64]) -> tuple[str, ...]:
        if not (count := int((lengths > self.context_length).sum())):
            return ()
        note = (
            f"{count} of {len(lengths)} prompts have more tokens than data.context_length {self.context_length}; the "
            "model reads them completely, but the adapter was not trained on texts of that length."
        )
        return (note,)

    def padding(self) -> dict[str, int]:
        """What fills the space after a short row; a padded position is a document of its own."""
        return {**super().padding(), "position_ids": 0, "document": NO_DOCUMENT}

    def load_prediction_splits(self) -> dict[str, list[Prompt]]:
        """The prompts of `predict_file`."""
        if self.predict_file is not None and Path(self.predict_file).suffix.lower() in RECORD_FILES:
            prompts: Sequence[str | Record] = read_records(self.predict_file, keep_blank_lines=True)
        else:
            prompts = read_queries(self.predict_file)
        name = "standard input" if self.predict_file == "-" else self.predict_file
        self.prompt_places = [
            prompt.where if isinstance(prompt, Record) else f"{name}, line {line}"
            for line, prompt in enumerate(prompts, start=1)
        ]
        return {PREDICT: [self.render_prompt(prompt) for prompt in prompts]}

    def prediction_inputs(self, split: str) -> list[dict[str, Any]]:
        """The prompt of each row."""
        return [{"prompt": prompt.shown} for prompt in self.prediction_splits[split]]

    def prompts(self, texts: Sequence[str]) -> TokenizedDataset:
        """Tokens of prompts that are not from `predict_file`, for sample texts.

        Args:
            texts: The prompts, at least one.

        Returns:
            A data set with a row for each prompt, in their order.
        """
        return TokenizedDataset(self._encode_prompts([self.render_prompt(text) for text in texts]), self.padding())

    def _encode_prompts(self, prompts: Sequence[Prompt]) -> EncodedSplit:
        lengths, tokens = flatten_rows([self.start_tokens + row for row in self.tokenize([p.text for p in prompts])])
        return EncodedSplit(lengths, {"input_ids": tokens})

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts of any length, without special tokens at their start or end."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    @cached_property
    def start_tokens(self) -> list[int]:
        """The begin-of-text token if this tokenizer puts one before every text, as Llama's and OPT's do."""
        start = self.tokenizer.bos_token_id
        return [start] if self.tokenizer("")["input_ids"][:1] == [start] else []
