"""What every text data module shares, whatever the task: tokenise once, cache, batch by length, predict."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from lora_lightning.backbones import load_tokenizer
from lora_lightning.datamodules.base import AdaptationDataModule
from lora_lightning.datamodules.batching import EncodedSplit, TokenizedDataset
from lora_lightning.datamodules.token_cache import cache_file, read_split, tokenizer_state, write_splits
from lora_lightning.errors import ConfigurationError

IGNORED_LABEL = -100  # what torch's cross entropy leaves out unless told otherwise


class TextDataModule(AdaptationDataModule):
    """Base of the data modules of texts: subclasses say where rows come from and how they become tokens.

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

    def padding(self) -> dict[str, int]:
        """What fills the space after a short row, by per-token column."""
        pad_token_id = cast("int", self.tokenizer.pad_token_id)
        return {"input_ids": pad_token_id, "token_type_ids": 0, "labels": IGNORED_LABEL}

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

    def open_split(self, name: str) -> TokenizedDataset:
        """Reads a split's tokens from the cache; what to predict is not kept there."""
        if name in self.prediction_splits:
            return TokenizedDataset(self.encode(name, self.prediction_splits[name]), self.padding())
        return TokenizedDataset(read_split(self.cache_file, name), self.padding())

    @cached_property
    def cache_file(self) -> Path:
        """A file named by everything that decides the tokens and labels."""
        parts = (type(self).__qualname__, tokenizer_state(self.tokenizer), self.encoding_settings())
        return cache_file(self.cache_dir, [*parts, *self.raw_splits.items()])
