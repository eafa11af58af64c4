"""Instructions with responses, and chats, for causal language modeling; only the responses are learnt."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lora_lightning.backbones.chat_template import ChatTemplate, Message, Span
from lora_lightning.datamodules.base import TEST, TRAIN, VALIDATION
from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.datamodules.causal_language_modeling import CausalLMDataModule, Prompt, check_files
from lora_lightning.datamodules.chat_records import (
    KNOWN_ROLES,
    Example,
    has_empty_response,
    lacks_output,
    parse_example,
    parse_prompt,
)
from lora_lightning.datamodules.instruction_format import ChatFormat, learnt_tokens, plain_prompt, render_plain
from lora_lightning.datamodules.packing import one_document_a_row, pack_documents
from lora_lightning.datamodules.record_columns import check_columns, rename_fields
from lora_lightning.datamodules.records import Record, hub_records, read_records
from lora_lightning.datamodules.repeated_texts import warn_about_repeated_texts
from lora_lightning.datamodules.special_tokens import note_on_control_tokens
from lora_lightning.datamodules.tokenizing import chunks_of
from lora_lightning.datamodules.unused_options import warn_about_unused_options, warn_about_unused_shares
from lora_lightning.datamodules.validation_share import check_no_other_test, held_out
from lora_lightning.errors import ConfigurationError, DataError

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_]]  # ids, and which of them are learnt


class InstructionDataModule(CausalLMDataModule):
    """Instructions and chats, packed into blocks of at most `context_length` tokens and kept apart from one another.

    A record has `instruction`, `input` (may be empty) and `output`, or `messages`, each with `role` and `content`, or
    ShareGPT's `conversations`. It may also have `system`, `tools` (JSON schemas) and, beside `instruction`, `history`
    (pairs of instruction and response). A message may have `reasoning_content`, `tool_calls` and `weight` or `train`:
    a response with `weight: 0` or `train: false` is part of the chat but not learnt. A record of which the chat
    template would leave out a message is refused. Other fields are named in one warning.

    The loss is on the responses alone, each with the token that ends it. A block holds complete examples, the same
    ones in every epoch.

    Args:
        train_file: Records: JSON lines, a JSON list (`.json`), CSV, TSV or Parquet.
        validation_file: The same for validation; without it, a random share of the training records is held out.
        test_file: The same for test; without it and without `test_share`, the model is not tested.
        dataset_name: Instead of files: a data set of the hub with the same fields, for example `tatsu-lab/alpaca`.
        dataset_config_name: The configuration of a data set that has several.
        columns: Names of the fields in your data: `{instruction: prompt, output: completion}`, `{messages: chosen}`,
            `{messages: [prompt, completion]}` for two lists of messages, or `{role: speaker, content: text}` within
            messages. `null` if the data has the names above.
        chat_template: Write examples with the tokenizer's chat template, which chats need; otherwise under the
            headings Instruction, Input and Response.
        empty_responses: A record without a response to learn (the original Alpaca has some), or a chat in which any
            response is blank, is an `error`, or is left out (`drop`), counted and reported.
        long_examples: What happens to an example that is longer than a block: `cut` its end off, or `drop` it. Either
            is counted and reported.
        packing: Fill a row with several examples that do not see one another, which trains faster. `false` trains one
            example a row, as state-space models, convolutions and some other architectures need; `batch_size` then
            counts examples.
        context_length: Number of tokens in the model's context.
        validation_share: Share of the training data to validate on if there is no validation split, in (0, 1).
        test_share: Share of the training data to test on if there is no test split, in (0, 1); `null` for none. It is
            taken before `validation_share`.
        split_seed: Seed of the choice of these examples, which are the same for every `seed_everything`.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training blocks per step and process.
        eval_batch_size: Blocks or prompts per step and process in validation, test and prediction.
        predict_file: What `predict` responds to: a text file with one instruction per line, `-` for standard input, or
            records with `instruction` and `input`, or with `messages`, of which a response at the end is left out.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches.
    """

    def __init__(
        self,
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        dataset_name: str | None = None,
        dataset_config_name: str | None = None,
        columns: dict[str, str | list[str]] | None = None,
        chat_template: bool = False,
        empty_responses: Literal["error", "drop"] = "error",
        long_examples: Literal["cut", "drop"] = "cut",
        packing: bool = True,
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
        self.files = {"train": train_file, "val": validation_file, "test": test_file}
        check_files(self.files)
        self.dataset_name = dataset_name
        self.dataset_config_name = dataset_config_name
        check_columns(columns)
        self.columns = columns
        self.chat_template = chat_template
        self.empty_responses = empty_responses
        self.long_examples = long_examples
        self._unread_of_prompts: list[set[str]] = []
        self.packing = packing

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the hub."""
        return self.dataset_name if self.files["train"] is None else None

    def read_splits(self) -> dict[str, list[Example]]:
        """Reads and checks every record, and holds out examples for validation if there is no validation split."""
        self._check_tokenizer()
        if self.files["train"] is not None:
            records = {split: read_records(path) for split, path in self.files.items() if path is not None}
        elif self.dataset_name is not None:
            records = hub_records(self.dataset_name, self.dataset_config_name, "set --data.train_file to a JSON file.")
        else:
            msg = "no instructions were given: set data.train_file or data.dataset_name."
            raise ConfigurationError(msg)
        self._warn_about_unused_options(records)
        records = {split: rename_fields(rows, self.columns) for split, rows in records.items()}
        splits = {split: self._examples(split, rows) for split, rows in records.items()}
        unread = [self._unread_fields(example) for examples in splits.values() for example in examples]
        warn_of_unread_fields(unread)
        warn_of_other_roles([example for examples in splits.values() for example in examples])
        if TEST in splits:
            check_no_other_test(self.test_share, self.files[TEST] or f"{self.dataset_name}, {TEST}")
        elif self.test_share is not None:
            splits[TRAIN], splits[TEST] = self._hold_out(splits[TRAIN], TEST)
        if VALIDATION not in splits:
            splits[TRAIN], splits[VALIDATION] = self._hold_out(splits[TRAIN], VALIDATION)
        warn_about_repeated_texts({name: [example.texts for example in rows] for name, rows in splits.items()})
        return {name: splits[name] for name in (TRAIN, VALIDATION, TEST) if name in splits}

    def _warn_about_unused_options(self, splits: Mapping[str, Any]) -> None:
        if self.files[TRAIN] is not None:
            warn_about_unused_options(self, ["dataset_name"], "data.train_file is read instead")
        if self.dataset_name is None:
            warn_about_unused_options(self, ["dataset_config_name"], "data.dataset_name is not set")
        warn_about_unused_shares(self, splits)

    def _hold_out(self, examples: list[Example], split: str) -> tuple[list[Example], list[Example]]:
        purpose, share = self.hold_out(split)
        chosen = held_out(len(examples), share, self.split_seed)
        if not chosen.any():
            msg = (
                f"{self.files[TRAIN] or self.dataset_name} has {len(chosen)} examples, too few to hold out "
                f"{share:g} of them; set data.{purpose}_share or data.{purpose}_file."
            )
            raise DataError(msg)
        kept = [example for example, is_out in zip(examples, chosen, strict=True) if not is_out]
        return kept, [example for example, is_out in zip(examples, chosen, strict=True) if is_out]

    def _examples(self, split: str, records: Sequence[Record]) -> list[Example]:
        some_respond = not all(lacks_output(record) for record in records)  # else the field has another name
        found = [
            (record, None if self._is_empty(record, some_respond) else parse_example(record)) for record in records
        ]
        examples = [example for _, example in found if example is not None and example.learnt_messages]
        lost = [record for record, example in found if example is None or not example.learnt_messages]
        if lost and self.empty_responses == "error":
            empty = has_empty_response(lost[0])
            what = "the response is empty; fill it in" if empty else "no response has a weight; give one weight 1"
            msg = f"{lost[0].where}: {what}, or set data.empty_responses: drop."
            raise DataError(msg)
        if not examples:
            msg = f"{lost[0].where}: none of the {len(records)} records of this split has a response; use other data."
            raise DataError(msg)
        if lost:
            rank_zero_warn(
                f"{split}: {len(lost)} of {len(records)} records have no response, or a blank one among several, and "
                "were left out."
            )
        return examples

    def _is_empty(self, record: Record, some_respond: bool) -> bool:
        if lacks_output(record) and some_respond:
            if self.empty_responses == "drop":
                return True
            if (column := (self.columns or {}).get("output")) is not None:
                msg = (
                    f"{record.where}: {column!r}, the output by data.columns, is missing or null; fill it in, or set "
                    "data.empty_responses: drop."
                )
                raise DataError(msg)
        return has_empty_response(record)

    def _unread_fields(self, example: Example) -> set[str]:
        """The fields of an example that nothing reads; an example that cannot be written is refused."""
        if self.chat_template:
            return {*example.unread, *self._chat_format.check(example)}
        if example.is_chat:
            msg = f"{example.where} is a chat, which needs the model's own format; set data.chat_template: true."
            raise DataError(msg)
        return set(example.unread)

    def _check_tokenizer(self) -> None:
        if self.chat_template and not self.tokenizer.chat_template:
            msg = (
                f"the tokenizer of {self.backbone} has no chat template; set data.chat_template: false, or use a "
                "backbone that was trained for chats, such as HuggingFaceTB/SmolLM2-135M-Instruct."
            )
            raise ConfigurationError(msg)
        if not self.chat_template and self.tokenizer.eos_token is None:
            msg = f"the tokenizer of {self.backbone} has no eos_token to end a response with; use another backbone."
            raise ConfigurationError(msg)

    def size_of(self, rows: list[Example]) -> str:
        """Counts records."""
        return f"{len(rows):,} records"

    def count_documents(self, rows: list[Example]) -> int:
        """Every record is a document, also one that is dropped because it is too long."""
        return len(rows)

    def encode_examples(self, rows: list[Example], *, by_document: bool = False) -> EncodedSplit:
        """Packed blocks, or one example a row; a note counts the examples that lost their end or were dropped."""
        most = self.context_length + 1  # the last token is only predicted
        tokenized = self._tokenized(rows)
        is_long = np.array([len(tokens) > most for tokens, _ in tokenized], dtype=np.bool_)
        examples = [(tokens[:most], learnt[:most]) for tokens, learnt in tokenized]
        is_dropped = is_long & (self.long_examples == "drop")
        kept = [row for row, (_, learnt) in enumerate(examples) if learnt[1:].any() and not is_dropped[row]]
        if not kept:
            msg = (
                f"{rows[0].where}: none of the {len(rows)} examples of this split has a response within "
                f"data.context_length {self.context_length}; raise it."
            )
            raise DataError(msg)
        notes = self._note_on_losses(len(rows), len(kept), int(is_long[kept].sum()))
        # Searched before the template adds its own: such a token in a message ends a turn, or begins one.
        notes += note_on_control_tokens(self.tokenizer, [_as_text(example.chat) for example in rows])
        documents = [examples[row] for row in kept]
        columns = {}
        if self.packing:
            blocks, columns["position_ids"], _ = pack_documents(documents, self.context_length)
        else:
            blocks = one_document_a_row(documents)
        columns |= {"input_ids": blocks.input_ids, "labels": blocks.labels}
        if by_document:
            columns["document"] = np.array(kept, dtype=np.int32)[blocks.documents]
        return EncodedSplit(blocks.lengths, columns, notes=notes)

    def _note_on_losses(self, total: int, kept: int, cut: int) -> tuple[str, ...]:
        if not cut and kept == total:
            return ()
        note = (
            f"of {total} examples {cut} lost their end and {total - kept} were dropped, because they are longer than "
            f"data.context_length {self.context_length}."
        )
        return (note,)

    def _tokenized(self, rows: Sequence[Example]) -> list[Tokens]:
        found: list[Tokens] = []
        rendered = [self._render(example) for example in rows]
        texts = [text for text, _ in rendered]
        marks = self.start_tokens
        for chunk in chunks_of(texts):
            encoded = self.tokenizer(
                texts[chunk],
                add_special_tokens=False,
                return_attention_mask=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            learnt_spans = [spans for _, spans in rendered[chunk]]
            for ids, offsets, spans in zip(encoded["input_ids"], encoded["offset_mapping"], learnt_spans, strict=True):
                learnt = np.concatenate([np.zeros(len(marks), dtype=np.bool_), learnt_tokens(offsets, spans)])
                found.append((np.array(marks + ids, dtype=np.int32), learnt))
        return found

    def _render(self, example: Example) -> tuple[str, list[Span]]:
        if self.chat_template:
            return self._chat_format.render(example)
        return render_plain(example, cast("str", self.tokenizer.eos_token))

    @cached_property
    def _chat_format(self) -> ChatFormat:
        return ChatFormat(ChatTemplate(self.tokenizer))

    def encoding_settings(self) -> dict[str, Any]:
        """How examples are written and cut."""
        return {
            "context_length": self.context_length,
            "chat_template": self.tokenizer.chat_template if self.chat_template else None,
            "end_of_text": self.tokenizer.eos_token,  # often all that a chat model's tokenizer changes
            "long_examples": self.long_examples,
            "packing": self.packing,
        }

    def load_prediction_splits(self) -> dict[str, list[Prompt]]:
        """The prompts of `predict_file`; fields that are not read are reported."""
        self._unread_of_prompts.clear()
        splits = super().load_prediction_splits()
        warn_of_unread_fields(self._unread_of_prompts)
        return splits

    def render_prompt(self, prompt: str | Record) -> Prompt:
        """An instruction or a chat in the form of the training examples, up to where the response begins."""
        if isinstance(prompt, Record):
            (prompt,) = rename_fields([prompt], self.columns, are_prompts=True)
        example = parse_prompt(prompt)
        self._unread_of_prompts.append(self._unread_fields(example))
        chat = example.chat
        shown = chat[0]["content"] if len(chat) == 1 else _as_text(chat)
        if self.chat_template:
            return Prompt(shown, self._chat_format.render_prompt(example))
        return Prompt(shown, plain_prompt(example.messages[0]["content"], example.context))

    @cached_property
    def start_tokens(self) -> list[int]:
        """As in the base class, but a chat template writes the begin-of-text token itself."""
        return [] if self.chat_template else super().start_tokens


def _as_text(chat: Sequence[Message]) -> str:
    return json.dumps(chat, ensure_ascii=False)


def warn_of_unread_fields(unread: Sequence[set[str]]) -> None:
    """Names fields that the user gave and nothing reads, in one warning.

    Args:
        unread: Their names, for each record.
    """
    counts = Counter(name for names in unread for name in names)
    if counts:
        fields = ", ".join(f"{name} ({count} of {len(unread)} records)" for name, count in sorted(counts.items()))
        rank_zero_warn(f"these fields are not read, so the model does not see them: {fields}.")


def warn_of_other_roles(examples: Sequence[Example]) -> None:
    """Counts messages of roles that not every chat template knows, in one warning: they are never learnt.

    Args:
        examples: Of all splits.
    """
    roles = [message["role"] for example in examples for message in example.messages]
    counts = Counter(role for role in roles if role not in KNOWN_ROLES)
    if counts:
        shown = ", ".join(f"{role!r} ({count} messages)" for role, count in sorted(counts.items()))
        rank_zero_warn(
            f"these roles are written as they are and never learnt: {shown}. Responses to learn have the role "
            f"'assistant'; the other usual roles are {', '.join(sorted(KNOWN_ROLES - {'assistant'}))}."
        )
