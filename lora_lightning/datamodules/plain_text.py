"""Plain text for causal language modeling: WikiText, any text file, JSON lines, or a data set from the Hub."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lightning.datamodules.base import TEST, TRAIN, VALIDATION
from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.datamodules.causal_language_modeling import CausalLMDataModule, Prompt, check_files
from lora_lightning.datamodules.documents import document_starts
from lora_lightning.datamodules.long_texts import tokenize_long_texts, tokenize_with_places
from lora_lightning.datamodules.packing import cut_stream
from lora_lightning.datamodules.records import RECORD_FILES, Record, hub_records, read_records, text_field
from lora_lightning.datamodules.repeated_texts import warn_about_repeated_texts
from lora_lightning.datamodules.special_tokens import note_on_control_tokens
from lora_lightning.datamodules.unused_options import warn_about_unused_options, warn_about_unused_shares
from lora_lightning.datamodules.validation_share import check_no_other_test, held_out
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.runs.tables import read_text

LINE_END = "\n"
WIKITEXT_SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class Corpus:
    """The text of one split.

    Attributes:
        where: The file or data set, for messages.
        texts: One text, or the documents.
        are_documents: Whether the model's end-of-text token follows each of `texts`.
    """

    where: str = field(compare=False)
    texts: list[str]
    are_documents: bool


class PlainTextDataModule(CausalLMDataModule):
    """Cuts one stream of text into blocks of `context_length` tokens, without padding; no token is lost.

    A text file is one text, byte for byte. Each record (JSON lines, a JSON list, CSV, TSV, Parquet, the Hub) is a
    document and ends with the model's end-of-text token. A document that is longer than a block continues in the next
    one. Validation and test predict every token but the first of the split exactly once, from the tokens of its block.

    Studies compare models by test document: a record; in a text file an article if it has WikiText's headings, else a
    paragraph between blank lines, else a line.

    Args:
        data_dir: Folder in WikiText's layout: `wiki.train.raw`, `wiki.valid.raw`, `wiki.test.raw` (or `.tokens`).
        train_file: Alternatively, a text file or a file of records.
        validation_file: The same for validation; without it, a share of the training data is held out: random
            documents, or the end of the one text.
        test_file: The same for test; without it and without `test_share`, the model is not tested.
        dataset_name: Alternatively, a data set on the Hub, for example `Salesforce/wikitext`.
        dataset_config_name: Its configuration, for example `wikitext-2-raw-v1`.
        rows_are_lines: Rows of the data set on the Hub are lines of one text, with their line ends, instead of
            documents, as WikiText's are; an empty row stands for a blank line, which is a space and a line end.
        text_column: Name of the field with the text of a record.
        context_length: Number of tokens in the model's context.
        validation_share: Share of the training data to validate on if there is no validation split, in (0, 1).
        test_share: Share of the training data to test on if there is no test split, in (0, 1); `null` for none. It is
            taken before `validation_share`.
        split_seed: Seed of the choice of these documents, which are the same for every `seed_everything`.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training blocks per step and process.
        eval_batch_size: Blocks, or prompts, per step and process in validation, test and prediction.
        predict_file: What `predict` continues: a text file with one prompt per line, `-` for standard input, or records
            with `prompt`.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        dataset_name: str | None = None,
        dataset_config_name: str | None = None,
        rows_are_lines: bool = False,
        text_column: str = "text",
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
            context_length=context_length,
            validation_share=validation_share,
            test_share=test_share,
            split_seed=split_seed,
            backbone=backbone,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            predict_file=predict_file,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self.data_dir = data_dir
        self.files = {"train": train_file, "val": validation_file, "test": test_file}
        check_files(self.files)
        if data_dir is not None and train_file is not None:
            msg = f"data.data_dir is {data_dir!r} and data.train_file {train_file!r}; leave out one or the other."
            raise ConfigurationError(msg)
        self.dataset_name = dataset_name
        self.dataset_config_name = dataset_config_name
        self.rows_are_lines = rows_are_lines
        self.text_column = text_column

    def read_splits(self) -> dict[str, Corpus]:
        """Reads the text of every split; holds out test and validation data if the source has none."""
        splits = self._read_source()
        self._warn_about_unused_options(splits)
        if TEST in splits:
            check_no_other_test(self.test_share, splits[TEST].where)
        elif self.test_share is not None:
            splits[TRAIN], splits[TEST] = self._hold_out(splits[TRAIN], TEST)
        if VALIDATION not in splits:
            splits[TRAIN], splits[VALIDATION] = self._hold_out(splits[TRAIN], VALIDATION)
        warn_about_repeated_texts({name: [(text,) for text in corpus.texts] for name, corpus in splits.items()})
        return {name: splits[name] for name in (TRAIN, VALIDATION, TEST) if name in splits}

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the hub."""
        return self.dataset_name if self.data_dir is None and self.files["train"] is None else None

    def _read_source(self) -> dict[str, Corpus]:
        """From the folder, else the files, else the Hub: a command line may add a folder to a YAML file's data set."""
        if self.data_dir is not None:
            return {split: self._read_file(path) for split, path in wikitext_files(Path(self.data_dir)).items()}
        if self.files["train"] is not None:
            return {split: self._read_file(path) for split, path in self.files.items() if path is not None}
        if self.dataset_name is not None:
            remedy = "set --data.data_dir to a folder with wiki.train.raw, or --data.train_file."
            found = hub_records(self.dataset_name, self.dataset_config_name, remedy)
            return {split: self._of_hub(records, split) for split, records in found.items()}
        msg = "no text was given: set data.data_dir (WikiText's layout), data.train_file or data.dataset_name."
        raise ConfigurationError(msg)

    def _warn_about_unused_options(self, splits: Mapping[str, Corpus]) -> None:
        from_hub = self.data_dir is None and self.files[TRAIN] is None
        if not from_hub:
            given = "data.train_file" if self.data_dir is None else "data.data_dir"
            warn_about_unused_options(self, ["dataset_name"], f"{given} is read instead")
        if self.dataset_name is None:
            why = "data.dataset_name is not set"
            warn_about_unused_options(self, ["dataset_config_name", "rows_are_lines"], why)
            if not any(corpus.are_documents for corpus in splits.values()):
                warn_about_unused_options(self, ["text_column"], "text files have no columns")
        warn_about_unused_shares(self, splits)

    def _read_file(self, path: str | Path) -> Corpus:
        if Path(path).suffix.lower() in RECORD_FILES:
            return Corpus(str(path), self._texts(read_records(path)), are_documents=True)
        text = read_text(Path(path))
        if not text.strip():
            msg = f"{path} is empty; give a file with text."
            raise DataError(msg)
        return Corpus(str(path), [text], are_documents=False)

    def _of_hub(self, records: list[Record], split: str) -> Corpus:
        where = f"{self.dataset_name}, {split}"
        if not self.rows_are_lines:
            return Corpus(where, self._texts(records), are_documents=True)
        lines = self._texts(records, may_be_empty=True)
        # WikiText on the Hub has an empty row for what is a line of one space in wiki.*.raw.
        return Corpus(where, ["".join(line or " \n" for line in lines)], are_documents=False)

    def _texts(self, records: Iterable[Record], may_be_empty: bool = False) -> list[str]:
        remedy = "name the field of texts with --data.text_column"
        return [text_field(record, self.text_column, may_be_empty, remedy) for record in records]

    def _hold_out(self, corpus: Corpus, split: str) -> tuple[Corpus, Corpus]:
        purpose, share = self.hold_out(split)
        pieces = corpus.texts if corpus.are_documents else corpus.texts[0].splitlines(keepends=True)
        if corpus.are_documents:
            chosen = held_out(len(pieces), share, self.split_seed)
        else:  # the end of the text: random lines would be predicted from their neighbours
            chosen = np.arange(len(pieces)) >= len(pieces) - round(share * len(pieces))
        if not 0 < chosen.sum() < len(pieces):
            unit = "documents" if corpus.are_documents else "lines"
            msg = (
                f"{corpus.where} has {len(pieces)} {unit}, too few to hold out {share:g} of them; set "
                f"data.{purpose}_share or data.{purpose}_file."
            )
            raise DataError(msg)
        parts = []
        for rows in (~chosen, chosen):
            texts = [piece for piece, kept in zip(pieces, rows, strict=True) if kept]
            parts.append(
                Corpus(corpus.where, texts if corpus.are_documents else ["".join(texts)], corpus.are_documents)
            )
        return parts[0], parts[1]

    def size_of(self, rows: Corpus) -> str:
        """Counts documents, or the lines of one text."""
        if rows.are_documents:
            return f"{len(rows.texts):,} documents"
        text = rows.texts[0]
        return f"{text.count(LINE_END) + (not text.endswith(LINE_END)):,} lines"

    def count_documents(self, rows: Corpus) -> int:
        """Records; of one text its articles, paragraphs or lines."""
        return len(rows.texts) if rows.are_documents else len(document_starts(rows.texts[0]))

    def encode_examples(self, rows: Corpus, *, by_document: bool = False) -> EncodedSplit:
        """The stream of all texts in blocks; a note counts the documents that no block can hold."""
        if rows.are_documents and self.tokenizer.eos_token_id is None:
            msg = f"the tokenizer of {self.backbone} has no end-of-text token to put between documents."
            raise ConfigurationError(msg)
        before = np.array(self.start_tokens, dtype=np.int32)
        after = np.array([self.tokenizer.eos_token_id] if rows.are_documents else [], dtype=np.int32)
        texts = [
            np.concatenate([before, ids, after]) for ids in tokenize_long_texts(self.tokenizer, rows.texts, rows.where)
        ]
        numbers = self._documents_of_tokens(rows, texts) if by_document else None
        blocks = cut_stream(np.concatenate([np.empty(0, dtype=np.int32), *texts]), self.context_length, numbers)
        if not len(blocks.lengths):
            msg = f"{rows.where} has fewer than 2 tokens; give more text."
            raise DataError(msg)
        columns = {"input_ids": blocks.input_ids, "labels": blocks.labels}
        if numbers is not None:
            columns["document"] = blocks.documents
        notes = self._note_on_long_documents(texts) if rows.are_documents else ()
        notes += note_on_control_tokens(self.tokenizer, rows.texts)
        return EncodedSplit(blocks.lengths, columns, notes=notes)

    def _documents_of_tokens(self, rows: Corpus, texts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32] | None:
        """The document of each token, (tokens,); `None` if the tokenizer does not know where a token of a text is."""
        if rows.are_documents:
            return np.repeat(np.arange(len(texts), dtype=np.int32), [len(tokens) for tokens in texts])
        if not self.tokenizer.is_fast:
            return None
        places = tokenize_with_places(self.tokenizer, rows.texts[0], rows.where)[:, 1]
        numbers = np.searchsorted(document_starts(rows.texts[0]), places, side="right") - 1
        return np.concatenate([np.zeros(len(texts[0]) - len(numbers)), numbers]).astype(np.int32)  # begin-of-text first

    def _note_on_long_documents(self, documents: Sequence[NDArray[np.int32]]) -> tuple[str, ...]:
        """Of a document with its special tokens, the last token is only predicted."""
        if not (count := sum(len(tokens) > self.context_length + 1 for tokens in documents)):
            return ()
        note = (
            f"{count} of {len(documents)} documents are longer than data.context_length {self.context_length}; each "
            "continues in the next block, where the model does not see its beginning."
        )
        return (note,)

    def encoding_settings(self) -> dict[str, Any]:
        """Where the stream is cut, and what its documents end with."""
        return {"context_length": self.context_length, "end_of_text": self.tokenizer.eos_token_id}

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
        DataError: If a file is missing.
    """
    folder = folder.expanduser()
    endings = [ending for ending in ("raw", "tokens") if (folder / f"wiki.train.{ending}").is_file()]
    ending = endings[0] if endings else "raw"
    files = {split: folder / f"wiki.{name}.{ending}" for split, name in WIKITEXT_SPLITS.items()}
    for path in files.values():
        if not path.is_file():
            there = ", ".join(sorted(file.name for file in folder.glob("*"))[:5]) or "nothing"
            found = f"the folder has {there}" if folder.is_dir() else "there is no such folder"
            msg = f"--data.data_dir: {path} is missing; {found}. For other files set data.train_file."
            raise DataError(msg)
    return files
