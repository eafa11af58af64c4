"""Plain text for causal language modelling: WikiText, any text file, JSON lines, or a data set of the hub."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.datamodules.causal_lm import CausalLMDataModule, Prompt
from lora_lightning.datamodules.packing import cut_stream
from lora_lightning.datamodules.records import Record, hold_out, hub_records, read_records, read_text, text_field
from lora_lightning.errors import ConfigurationError, DataError

WIKITEXT_SPLITS = {"train": "train", "val": "valid", "test": "test"}
DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Corpus:
    """The text of one split.

    Attributes:
        where: The file or data set, for messages.
        texts: One text, or the documents.
        are_documents: Whether each of `texts` ends with the model's end-of-text token.
    """

    where: str
    texts: list[str]
    are_documents: bool


class PlainTextDataModule(CausalLMDataModule):
    """Blocks of `context_length` tokens from one stream of text, without padding and without loss.

    A text file is one text, byte for byte. Of JSON lines (`.jsonl`, `.json`) and of the hub's data sets each record
    is a document, and ends with the model's end-of-text token. Validation and test predict every token but the first
    of the split exactly once, from the tokens of its block.

    Args:
        data_dir: Folder in WikiText's layout: `wiki.train.raw`, `wiki.valid.raw`, `wiki.test.raw` (or `.tokens`).
        train_file: Instead: a text file, or JSON lines.
        val_file: The same for validation; without it a share of the training data is set aside: random documents, or
            the end of the one text.
        test_file: The same for test; without it nothing is tested.
        hub_dataset: Instead: a data set of the hub, for example `Salesforce/wikitext`.
        hub_config: Its configuration, for example `wikitext-2-raw-v1`.
        hub_rows_are_lines: Rows of the hub's data set are lines of one text and no documents, as WikiText's are.
        text_field: The field of a record that holds the text.
        context_length: Tokens the model sees at once.
        validation_share: Share of the training data to validate on where there is no validation split, in (0, 1).
        split_seed: Which documents that are.
        backbone: Whose tokenizer to use; the command line fills it in from `model.backbone`.
        batch_size: Training blocks a step and process.
        eval_batch_size: Blocks, or prompts, a step and process in validation, test and prediction.
        predict_file: Text file with one prompt a line for `predict`, `-` for standard input, or JSON lines with
            `prompt`.
        cache_dir: Where tokenised data is kept; `~/.cache/lora_lightning` (or below `$XDG_CACHE_HOME`) if not given.
        num_workers: Processes that build batches.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        train_file: str | None = None,
        val_file: str | None = None,
        test_file: str | None = None,
        hub_dataset: str | None = None,
        hub_config: str | None = None,
        hub_rows_are_lines: bool = False,
        text_field: str = "text",
        context_length: int = 512,
        validation_share: float = 0.05,
        split_seed: int = 0,
        backbone: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        predict_file: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            context_length=context_length,
            validation_share=validation_share,
            split_seed=split_seed,
            backbone=backbone,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            predict_file=predict_file,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self.data_dir = data_dir
        self.files = {"train": train_file, "val": val_file, "test": test_file}
        self.hub_dataset = hub_dataset
        self.hub_config = hub_config
        self.hub_rows_are_lines = hub_rows_are_lines
        self.text_field = text_field

    def read_splits(self) -> dict[str, Corpus]:
        """Reads the text of every split; sets validation aside where there is none."""
        splits = self._read_source()
        if "val" not in splits:
            splits["train"], splits["val"] = self._set_aside(splits["train"])
        return splits

    def _read_source(self) -> dict[str, Corpus]:
        """From the first of folder, files and hub that is given: a folder on the command line beats a YAML's hub id."""
        if self.data_dir is not None:
            return {split: self._read_file(path) for split, path in wikitext_files(Path(self.data_dir)).items()}
        if self.files["train"] is not None:
            return {split: self._read_file(path) for split, path in self.files.items() if path is not None}
        if self.hub_dataset is not None:
            remedy = "set --data.data_dir to a folder with wiki.train.raw, or --data.train_file."
            found = hub_records(self.hub_dataset, self.hub_config, remedy)
            return {split: self._of_hub(records, split) for split, records in found.items()}
        msg = "no text was given: set data.data_dir (WikiText's layout), data.train_file or data.hub_dataset."
        raise ConfigurationError(msg)

    def _read_file(self, path: str | Path) -> Corpus:
        if Path(path).suffix in {".json", ".jsonl"}:
            return Corpus(str(path), self._texts(read_records(path)), are_documents=True)
        text = read_text(path)
        if not text.strip():
            msg = f"{path} is empty; give a file with text."
            raise DataError(msg)
        return Corpus(str(path), [text], are_documents=False)

    def _of_hub(self, records: list[Record], split: str) -> Corpus:
        where = f"{self.hub_dataset}, {split}"
        if not self.hub_rows_are_lines:
            return Corpus(where, self._texts(records), are_documents=True)
        lines = [text_field(record, self.text_field, may_be_empty=True) for record in records]
        return Corpus(where, ["".join(lines)], are_documents=False)

    def _texts(self, records: Iterable[Record]) -> list[str]:
        return [text_field(record, self.text_field) for record in records]

    def _set_aside(self, corpus: Corpus) -> tuple[Corpus, Corpus]:
        pieces = corpus.texts if corpus.are_documents else corpus.texts[0].splitlines(keepends=True)
        if len(pieces) < 2:  # noqa: PLR2004  # one to learn, one to validate
            msg = f"{corpus.where} is too short to set a share aside for validation; give data.val_file."
            raise DataError(msg)
        if corpus.are_documents:
            kept, held_out = hold_out(pieces, self.validation_share, self.split_seed)
        else:  # random lines would be predicted from their neighbours
            place = min(max(round((1 - self.validation_share) * len(pieces)), 1), len(pieces) - 1)
            kept, held_out = ["".join(pieces[:place])], ["".join(pieces[place:])]
        return (
            Corpus(corpus.where, kept, corpus.are_documents),
            Corpus(corpus.where, held_out, corpus.are_documents),
        )

    def encode_examples(self, rows: Corpus) -> EncodedSplit:
        """The stream of all texts in blocks."""
        end = [self.tokenizer.eos_token_id] if rows.are_documents else []
        if end == [None]:
            msg = f"the tokenizer of {self.backbone} has no end-of-text token to set documents apart with."
            raise ConfigurationError(msg)
        parts = [np.empty(0, dtype=np.int32)]
        for start in range(0, len(rows.texts), DOCUMENTS_AT_ONCE):
            batch = self.tokenize(rows.texts[start : start + DOCUMENTS_AT_ONCE])
            parts += [np.array(self.start_tokens + ids + end, dtype=np.int32) for ids in batch]
        blocks = cut_stream(np.concatenate(parts), self.context_length)
        if not len(blocks.lengths):
            msg = f"{rows.where} has fewer than 2 tokens; give more text."
            raise DataError(msg)
        return EncodedSplit(blocks.lengths, {"input_ids": blocks.input_ids, "labels": blocks.labels})

    def encoding_settings(self) -> dict[str, Any]:
        """Where the stream is cut."""
        return {"context_length": self.context_length}

    def render_prompt(self, prompt: str | Record) -> Prompt:
        """The text itself."""
        text = prompt if isinstance(prompt, str) else text_field(prompt, "prompt")
        return Prompt(text, text)


def wikitext_files(folder: Path) -> dict[str, Path]:
    """Finds the three files of a WikiText release.

    Args:
        folder: Holds `wiki.train.raw`, `wiki.valid.raw`, `wiki.test.raw`, or the same with `.tokens`.

    Returns:
        File by `train`, `val`, `test`.

    Raises:
        DataError: If one is missing.
    """
    folder = folder.expanduser()
    endings = [ending for ending in ("raw", "tokens") if (folder / f"wiki.train.{ending}").is_file()]
    ending = endings[0] if endings else "raw"
    files = {split: folder / f"wiki.{name}.{ending}" for split, name in WIKITEXT_SPLITS.items()}
    for path in files.values():
        if not path.is_file():
            there = ", ".join(sorted(file.name for file in folder.glob("*"))[:5]) or "nothing"
            msg = f"--data.data_dir: {path} is missing; the folder has {there}. For other files set data.train_file."
            raise DataError(msg)
    return files
