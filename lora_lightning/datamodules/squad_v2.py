"""The data module for SQuAD 2.0 (Rajpurkar et al. 2018); its task is `tasks.question_answering`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.backbones import uses_token_types
from lora_lightning.datamodules.answer_lengths import answer_lengths, note_on_lost_answers
from lora_lightning.datamodules.base import KINDS_OF_STAGE, PREDICT, TEST, TRAIN, VALIDATION
from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.datamodules.context_windows import encode_windows, pair_layout
from lora_lightning.datamodules.hub import load_hub_dataset
from lora_lightning.datamodules.repeated_texts import warn_about_repeated_texts
from lora_lightning.datamodules.special_tokens import note_on_control_tokens, note_on_split_tokens
from lora_lightning.datamodules.squad_format import (
    Articles,
    check_articles,
    checked_question,
    parse_squad_json,
    read_squad_json,
)
from lora_lightning.datamodules.text_base import TextDataModule
from lora_lightning.datamodules.unused_options import warn_about_unused_options
from lora_lightning.datamodules.validation_share import check_hold_out, check_no_other_test
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.lora.families import FAMILIES
from lora_lightning.metrics.squad_v2 import Question
from lora_lightning.runs.files import write_text_atomically

HUB_DATASET = "rajpurkar/squad_v2"
TRAIN_NAME, DEV_NAME = "train-v2.0.json", "dev-v2.0.json"


class SquadV2DataModule(TextDataModule):
    """SQuAD 2.0 (or 1.1, or your own data in its layout) from the official JSON or the hub's `rajpurkar/squad_v2`.

    A context that does not fit is read in overlapping windows. The validation split decides how sure a model must be
    of an answer to give it. SQuAD's own test set is not public; `test` is

    - without `validation_share` the validation file again, as is usual: the threshold was chosen on it, so the scores
      are the official script's best ones;
    - with `validation_share` and a validation file that file: nothing was chosen on it;
    - with `validation_share` alone the held-out articles again, for the same scores as validation's;
    - with `test_share` held-out articles of the training file: nothing was chosen on them.

    Args:
        data_dir: Folder with the release's `train-v2.0.json` and `dev-v2.0.json`; without it and without files the
            hub is asked.
        train_file: A training file instead of the folder's.
        validation_file: A validation file instead of the folder's.
        validation_share: Share of the training file's articles to hold out for validation, in (0, 1); no article is on
            both sides.
        test_share: Share of the training file's articles to hold out for test, in (0, 1); `null` for none. It is taken
            before `validation_share`.
        split_seed: Seed of the choice of held-out articles, which are the same for every `seed_everything`.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training windows per step and process.
        eval_batch_size: Windows per step and process in validation, test and prediction.
        max_length: Maximum number of tokens of a window, including the question and special tokens.
        doc_stride: Overlap of neighbouring windows, in context tokens.
        predict_file: JSON in SQuAD's layout for `predict`, or `-` for standard input; its questions need no answers.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches; 0 is fastest for short texts.
    """

    predictions_name: ClassVar[str] = "predictions.json"

    def __init__(
        self,
        data_dir: str | None = None,
        train_file: str | None = None,
        validation_file: str | None = None,
        validation_share: float | None = None,
        test_share: float | None = None,
        split_seed: int = 0,
        backbone: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        max_length: int = 384,
        doc_stride: int = 128,
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
        check_hold_out(validation_share, test_share, split_seed)
        if max_length < 1:
            msg = (
                f"data.max_length is {max_length}, but a window has a question and a part of its context; 384 is usual."
            )
            raise ConfigurationError(msg)
        if not 0 <= doc_stride < max_length:
            msg = f"data.doc_stride is {doc_stride}, but it must be in [0, max_length), here [0, {max_length})."
            raise ConfigurationError(msg)
        self.data_dir = data_dir
        self.train_file = train_file
        self.validation_file = validation_file
        self.validation_share = validation_share
        self.test_share = test_share
        self.split_seed = split_seed
        self.max_length = max_length
        self.doc_stride = doc_stride

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the hub."""
        return None if self._files else HUB_DATASET  # files may hold other data in this layout

    def load_splits(self) -> dict[str, list[Question]]:
        """Reads and checks the files or the hub."""
        train, validation = self._from_files() if self._files else self._from_hub()
        test: Articles = []
        if self.test_share is not None:
            if self.validation_share is not None and validation:
                name = self._files.get(VALIDATION, (f"{HUB_DATASET}, validation", ""))[0]
                check_no_other_test(self.test_share, str(name))
            train, test = self._hold_out(train, "test_share", self.test_share)
        if self.validation_share is not None:
            train, held_out = self._hold_out(train, "validation_share", self.validation_share)
            splits = {TRAIN: train, VALIDATION: held_out, TEST: test or validation or held_out}
            self.held_out_splits |= {VALIDATION} if test or validation else {VALIDATION, TEST}
        else:
            splits = {TRAIN: train, VALIDATION: validation, TEST: test or validation}
        if test:
            self.held_out_splits.add(TEST)
        if not self.held_out_splits:
            warn_about_unused_options(self, ["split_seed"], "no articles are held out")
        found = {
            name: [question for article in articles for question in article]
            for name, articles in splits.items()
            if articles
        }
        if TRAIN in found:
            asked = {name: [(each.question, each.context) for each in rows] for name, rows in found.items()}
            warn_about_repeated_texts(asked)
        return found

    @property
    def _files(self) -> dict[str, tuple[Path, str]]:
        """The path, and the option it came from, of each file that was asked for."""
        asked = {TRAIN: ("train_file", self.train_file), VALIDATION: ("validation_file", self.validation_file)}
        files = {name: (Path(path).expanduser(), f"--data.{option}") for name, (option, path) in asked.items() if path}
        if self.data_dir is not None:
            folder = Path(self.data_dir).expanduser()
            names = {TRAIN: TRAIN_NAME, VALIDATION: DEV_NAME}
            files = {split: (folder / name, "--data.data_dir") for split, name in names.items()} | files
        return files

    def _from_files(self) -> tuple[Articles, Articles]:
        files = self._files
        if VALIDATION not in files and self.validation_share is None:
            msg = "there is no validation data: give --data.validation_file, or --data.validation_share such as 0.1."
            raise DataError(msg)
        for name, share in (("validation_share", self.validation_share), ("test_share", self.test_share)):
            if TRAIN not in files and share is not None:
                msg = f"data.{name} takes articles from the training data; give --data.train_file."
                raise DataError(msg)
        train, validation = (read_squad_json(*files[split]) if split in files else [] for split in (TRAIN, VALIDATION))
        return train, validation

    def _from_hub(self) -> tuple[Articles, Articles]:
        remedy = (
            f"without network set --data.data_dir to a folder with the original release's {TRAIN_NAME} and {DEV_NAME}."
        )
        splits = load_hub_dataset(HUB_DATASET, None, remedy)
        train, validation = (hub_articles(splits[name], f"{HUB_DATASET}, {name}") for name in ("train", "validation"))
        return train, validation

    def _hold_out(self, articles: Articles, option: str, share: float) -> tuple[Articles, Articles]:
        count = round(share * len(articles))
        if len(articles) < 2:  # noqa: PLR2004  # one for either side
            msg = (
                f"data.{option} is {share}, but the training data has one article, which cannot be on both sides; "
                f"give more articles, or leave out data.{option}."
            )
            raise DataError(msg)
        order = np.random.default_rng(self.split_seed).permutation(len(articles))
        held_out = set(order[: min(max(count, 1), len(articles) - 1)].tolist())
        return (
            [article for number, article in enumerate(articles) if number not in held_out],
            [article for number, article in enumerate(articles) if number in held_out],
        )

    def load_prediction_splits(self) -> dict[str, list[Question]]:
        """The questions of `predict_file`."""
        if self.predict_file is None:
            msg = "predict needs --data.predict_file with questions in SQuAD's JSON layout, or - for standard input."
            raise DataError(msg)
        if self.predict_file == "-":
            articles = parse_squad_json(sys.stdin.buffer.read(), "standard input", answers_needed=False)
        else:
            path = Path(self.predict_file).expanduser()
            articles = read_squad_json(path, "--data.predict_file", answers_needed=False)
        return {PREDICT: [question for article in articles for question in article]}

    def save_inputs(self, inputs: Sequence[Any], folder: Path) -> Path:
        """Writes questions to predict in SQuAD's layout.

        Args:
            inputs: Mappings with `question`, `context` and perhaps `id`; without it, questions are numbered from 1.
            folder: Where to.

        Returns:
            The file.

        Raises:
            DataError: If an input is something else.
        """
        paragraphs = []
        for number, row in enumerate(inputs, start=1):
            texts = [row.get(name) for name in ("question", "context")] if isinstance(row, Mapping) else [None]
            if not all(isinstance(text, str) for text in texts):
                msg = f"input {number} is {str(row)[:60]!r}, but a mapping with texts question and context is needed."
                raise DataError(msg)
            question = {"id": str(row.get("id", number)), "question": texts[0]}
            paragraphs.append({"context": texts[1], "qas": [question]})
        path = folder / "inputs.json"
        path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
        return path

    def size_of(self, rows: Sequence[Question]) -> str:
        """Counts questions."""
        return f"{len(rows):,} questions"

    def questions(self, split: str) -> list[Question]:
        """The questions of a split, by the number that a batch's `question` gives.

        Args:
            split: `train`, `val` or `test`.

        Returns:
            All of them, in the files' order.
        """
        questions: list[Question] = self.raw_splits[split]
        return questions

    @cached_property
    def window_length(self) -> int:
        """`max_length`, once it is known that the backbone has as many positions.

        Raises:
            ConfigurationError: If it has fewer.
        """
        limit = self.position_limit(pair_layout(self.tokenizer).size + 2)
        if limit is not None and self.max_length > limit:
            msg = (
                f"data.max_length is {self.max_length}, but {self.backbone} takes {limit} tokens at most; set "
                f"--data.max_length {limit} and --data.doc_stride below a third of it."
            )
            raise ConfigurationError(msg)
        return self.max_length

    @cached_property
    def has_token_types(self) -> bool:
        """Whether the backbone tells question and context apart by an embedding."""
        return uses_token_types(self.model_config)

    def encoding_settings(self) -> dict[str, Any]:
        """How contexts are cut into windows."""
        return {
            "max_length": self.window_length,
            "doc_stride": self.doc_stride,
            "token_types": self.has_token_types,
            "cls_token_id": self.tokenizer.cls_token_id,
            "split_special_tokens": self._split_special_tokens,
        }

    @property
    def _split_special_tokens(self) -> bool:
        family = FAMILIES.get(self.model_config.model_type)
        return family is not None and family.counts_separators

    def padding(self) -> dict[str, int]:
        """Padding is no part of the context: no character of it."""
        return {**super().padding(), "char_start": 0, "char_end": 0}

    def encode(self, split: str, rows: Sequence[Question]) -> EncodedSplit:
        """One row of tokens a window.

        Args:
            split: Training needs no places of tokens in the context.
            rows: The questions.

        Returns:
            Per token `input_ids`, `token_type_ids` where the backbone uses them, and but for training `char_start` and
            `char_end`; per window the number of its `question`, `null_position`, and `start_positions` and
            `end_positions` of the first answer, or both `null_position`.
        """
        per_token = ["input_ids"] + ["token_type_ids"] * self.has_token_types
        per_token += ["char_start", "char_end"] * (split != TRAIN)
        per_row = ("question", "null_position", "start_positions", "end_positions")
        tokens: dict[str, list[Any]] = {name: [] for name in per_token}
        columns: dict[str, list[int]] = {name: [] for name in per_row}
        sizes = (self.window_length, self.doc_stride)
        for window in encode_windows(
            rows, self.tokenizer, *sizes, self._source_of(split), split_special_tokens=self._split_special_tokens
        ):
            for name, parts in tokens.items():
                parts.append(getattr(window, name).astype(np.int32))
            places = (window.question, window.null_position, window.start_position, window.end_position)
            for name, value in zip(per_row, places, strict=True):
                columns[name].append(value)
        encoded = EncodedSplit(
            np.array([len(ids) for ids in tokens["input_ids"]], dtype=np.int64),
            {name: np.concatenate(parts) for name, parts in tokens.items()},
            {name: np.array(values, dtype=np.int64) for name, values in columns.items()},
        )
        texts = dict.fromkeys(text for question in rows for text in (question.question, question.context))
        note = note_on_split_tokens if self._split_special_tokens else note_on_control_tokens
        notes = note(self.tokenizer, texts)
        if split != PREDICT:
            notes += note_on_lost_answers(encoded, rows, self.window_length, self.doc_stride)
        return replace(encoded, notes=notes)

    def check_answer_lengths(self, max_answer_length: int, stage: str) -> None:
        """Counts the answers that are longer than the model may give.

        Args:
            max_answer_length: `model.max_answer_length`, tokens.
            stage: Whose splits to look at; their data is open.

        Raises:
            ConfigurationError: If all answers to train and validate on are.
        """
        names = [name for kind in KINDS_OF_STAGE[stage] if kind != PREDICT for name in self.split_names(kind)]
        lengths = {name: list(answer_lengths(self.splits[name].split, self.questions(name)).values()) for name in names}
        longest = max((length for found in lengths.values() for length in found), default=0)
        if longest <= max_answer_length:
            return
        too_long = {name: sum(length > max_answer_length for length in found) for name, found in lengths.items()}
        counts = ", ".join(f"{too_long[name]} of {len(found)} in {name}" for name, found in lengths.items())
        msg = (
            f"answers longer than model.max_answer_length {max_answer_length} tokens can never be given: {counts}; the "
            f"longest has {longest} tokens, so set --model.max_answer_length {longest} to allow all of them."
        )
        if stage == "fit" and sum(too_long.values()) == sum(map(len, lengths.values())):
            raise ConfigurationError(msg)
        rank_zero_warn(msg)

    def _source_of(self, split: str) -> str:
        """What to call the file, or the hub's split, that a split's questions came from."""
        if split == PREDICT:
            return "standard input" if self.predict_file == "-" else f"{self.predict_file}"
        files = {name: str(path) for name, (path, _) in self._files.items()}
        files = files or {TRAIN: f"{HUB_DATASET}, train", VALIDATION: f"{HUB_DATASET}, validation"}
        held_out = (split == VALIDATION and self.validation_share is not None) or (
            split == TEST and self.test_share is not None
        )
        return files[TRAIN if split == TRAIN or held_out or VALIDATION not in files else VALIDATION]

    def prediction_inputs(self, split: str) -> list[dict[str, Any]]:
        """Id and context of each question, by the number that a batch's `question` gives."""
        return [{"id": question.id, "context": question.context} for question in self.prediction_splits[split]]

    def check_predictions_file(self, path: Path) -> None:
        """Refuses what is not called `.json`, the official form."""
        if path.suffix != ".json":
            msg = f"--predictions.file is {str(path)!r}, but SQuAD's predictions are JSON; let it end in .json."
            raise ConfigurationError(msg)

    def write_predictions(self, predictions: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
        """Writes the official predictions, and beside them what else is known of each question.

        `<name>.json` has the answer by question id, empty for none; `<name>_null_odds.json` has by how much the model
        prefers none, for the official script's `--na-prob-file`; `<name>_nbest.json` has each question's best answers.

        Args:
            predictions: From `QuestionAnsweringTask.prediction_rows`.
            path: The first file.

        Raises:
            ConfigurationError: If a file cannot be written.
        """
        rows = [row for part in predictions.values() for row in part]
        for ending, column in (("", "answer"), ("_null_odds", "null_odds"), ("_nbest", "nbest")):
            place = path.with_name(f"{path.stem}{ending}.json")
            content = {row["id"]: row[column] for row in rows}
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(place, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            except OSError as error:
                msg = f"the predictions cannot be written to {place} ({error.strerror}); choose --predictions.file."
                raise ConfigurationError(msg) from error


def hub_articles(rows: Any, name: str) -> Articles:
    """Questions from the hub's table.

    Args:
        rows: One split, with the columns id, title, context, question, answers.
        name: What to call it in messages.

    Returns:
        The questions of each article, in the order in which titles appear.

    Raises:
        DataError: As for a file.
    """
    articles: dict[str, list[Question]] = {}
    for row in rows.to_list():
        answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        question = checked_question(row["id"], row["question"], row["context"], answers, name)
        articles.setdefault(row["title"], []).append(question)
    return check_articles(list(articles.values()), name)
