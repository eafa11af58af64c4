"""What every text data module shares, whatever the task: tokenize once, cache, check, batch by length, predict."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lora_lightning.backbones import load_config, load_tokenizer, position_limit
from lora_lightning.datamodules.base import KINDS_OF_STAGE, AdaptationDataModule
from lora_lightning.datamodules.batching import EncodedSplit, TokenizedDataset
from lora_lightning.datamodules.embedded_tokens import check_tokens_are_embedded
from lora_lightning.datamodules.token_cache import cache_file, own_code, read_splits, tokenizer_state, write_splits
from lora_lightning.errors import BackboneError, ConfigurationError

IGNORED_LABEL = -100  # the default `ignore_index` of torch's cross entropy


class TextDataModule(AdaptationDataModule):
    """Base of the data modules for text. Subclasses read the rows and turn them into tokens.

    The rows of a split can be anything that JSON can represent, or dataclasses of it; they are part of the cache key.
    So is the source file of a subclass of yours; a subclass without one, as in a notebook, is not cached.

    Args:
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation, test and prediction.
        predict_file: The input of `predict`.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches; 0 is fastest for short texts.
    """

    def __init__(
        self,
        backbone: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        predict_file: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, predict_file, num_workers)
        self.backbone = backbone
        self.cache_dir = cache_dir
        self._encoded_splits: dict[str, EncodedSplit] = {}  # the splits with labels

    @abstractmethod
    def encode(self, split: str, rows: Any) -> EncodedSplit:
        """Turns the rows of a split into tokens and labels.

        Args:
            split: Name of the split.
            rows: From `load_splits` or `load_prediction_splits`.

        Returns:
            The encoded split; its number of rows may differ from that of `rows`.
        """

    @abstractmethod
    def encoding_settings(self) -> dict[str, Any]:
        """The settings that `encode` depends on besides rows and tokenizer, such as `max_length`, for JSON."""

    def padding(self) -> dict[str, int]:
        """The padding value of each per-token column."""
        pad_token_id = cast("int", self.tokenizer.pad_token_id)
        return {"input_ids": pad_token_id, "token_type_ids": 0, "labels": IGNORED_LABEL}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer.

        Raises:
            ConfigurationError: If no backbone was given.
        """
        return load_tokenizer(self.required_backbone)

    @cached_property
    def model_config(self) -> PretrainedConfig:
        """The backbone's configuration, which knows vocabulary size, positions and token types.

        Raises:
            ConfigurationError: If no backbone was given.
        """
        return load_config(self.required_backbone)

    def position_limit(self, needed: int) -> int | None:
        """The most tokens that the backbone takes at once.

        Args:
            needed: The fewest tokens of a row.

        Returns:
            Its positions; `None` for no limit.

        Raises:
            BackboneError: If it has fewer than `needed`.
        """
        limit = position_limit(self.model_config)
        if limit is not None and limit < needed:
            msg = (
                f"the backbone {self.backbone!r} has {limit} positions, but a row takes at least {needed} tokens; "
                "correct max_position_embeddings in its config.json, or choose another backbone."
            )
            raise BackboneError(msg)
        return limit

    @property
    def required_backbone(self) -> str:
        """The backbone's name.

        Raises:
            ConfigurationError: If no backbone was given.
        """
        if self.backbone is None:
            msg = "data.backbone is not set; give the same backbone as the model's."
            raise ConfigurationError(msg)
        return self.backbone

    def prepare_data(self) -> None:
        """Tokenizes and caches the splits with labels, unless the cache already holds them."""
        if self.trainer is None or not self.trainer.predicting:
            self._tokenize()

    def setup(self, stage: str) -> None:
        """Opens the splits that a stage needs, and warns about what the model does not see as it was written.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        super().setup(stage)
        for kind in KINDS_OF_STAGE[stage]:
            for name in self.split_names(kind):
                for note in self.splits[name].split.notes:
                    rank_zero_warn(f"{name}: {note}")

    def open_split(self, name: str) -> TokenizedDataset:
        """Returns the dataset of a split; prediction data is tokenized here and never cached."""
        if name in self.prediction_splits:
            encoded = self._embedded(name, self.encode(name, self.prediction_splits[name]))
            return TokenizedDataset(encoded, self.padding())
        self._tokenize()
        return TokenizedDataset(self._encoded_splits[name], self.padding())

    def _tokenize(self) -> None:
        if self._encoded_splits:
            return
        is_cached = own_code(type(self), TextDataModule) is not None
        found = read_splits(self.cache_file) if is_cached and self.cache_file is not None else None
        if found is None:
            found = {name: self.encode(name, rows) for name, rows in self.raw_splits.items()}
            if is_cached:
                write_splits(self.cache_file, found)
        self._encoded_splits = {name: self._embedded(name, encoded) for name, encoded in found.items()}

    def _embedded(self, name: str, encoded: EncodedSplit) -> EncodedSplit:
        check_tokens_are_embedded(encoded, name, self.tokenizer, self.model_config, self.required_backbone)
        return encoded

    @cached_property
    def cache_file(self) -> Path | None:
        """A file whose name is a hash of everything that decides tokens and labels; `None` without a home folder."""
        code = own_code(type(self), TextDataModule) or ()
        parts = (type(self).__qualname__, *code, tokenizer_state(self.tokenizer), self.encoding_settings())
        return cache_file(self.cache_dir, [*parts, *self.raw_splits.items()])
