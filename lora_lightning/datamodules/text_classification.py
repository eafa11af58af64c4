"""Your own texts and labels, from files or from any data set of the hub."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lora_lightning.datamodules.base import PREDICT, TEST, TRAIN, VALIDATION
from lora_lightning.datamodules.hidden_labels import hidden_labels
from lora_lightning.datamodules.hub import hub_label_names, hub_table, load_hub_dataset, named_splits
from lora_lightning.datamodules.label_columns import class_indices, class_labels, label_sets, sorted_names
from lora_lightning.datamodules.label_doubts import doubts_about_labels
from lora_lightning.datamodules.number_columns import finite_numbers
from lora_lightning.datamodules.queries import read_queries
from lora_lightning.datamodules.sequence_classification import ClassificationDataModule, LabeledTexts
from lora_lightning.datamodules.unused_options import warn_about_unused_options, warn_about_unused_shares
from lora_lightning.datamodules.validation_share import check_hold_out, check_no_other_test, held_out
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics.label_space import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpace, ProblemType
from lora_lightning.runs.tables import READERS, Table, read_table

NEAR = 0.6  # similarity of a column name that is probably misspelt
HUB_REMEDY = "without network set --data.train_file to a file of your own."


@dataclass(frozen=True)
class _Source:
    """Where the rows are, and the label names if the source has an order of its own for them."""

    tables: dict[str, Table]
    names: list[str] | None = None


class TextClassificationDataModule(ClassificationDataModule):
    """Texts, or pairs of texts, with one label, several labels, or a number each.

    Files are CSV, TSV (no quoting: a quotation mark is one), JSON lines or Parquet, by their endings; their columns
    are named below. Labels are those of the training file, sorted; of two, the second counts as positive.

    Args:
        train_file: Table to train on; or else `dataset_name`.
        validation_file: Table to validate on; without it, a share of the training rows is held out.
        test_file: Table to test on; without it and without `test_share`, the model is not tested.
        dataset_name: Hub id of a data set, in place of files.
        dataset_config_name: Configuration of the data set, if it has several.
        text_column: Name of the column of texts.
        text_pair_column: Name of the column of second texts, if there is one.
        label_column: Name of the column of labels.
        problem_type: `single_label_classification`, `multi_label_classification` or `regression`.
        label_separator: Separator between several labels of a text in one cell; lists need none.
        validation_share: Share of the training rows to validate on if there is no validation split, in (0, 1);
            the same share of every class.
        test_share: Share of the training rows to test on if there is no test split with labels, in (0, 1); the same
            share of every class. `null` holds out none. It is taken before `validation_share`.
        split_seed: Seed of the choice of these rows, which are the same for every `seed_everything`.
        metrics: Names of the metrics to report; those that are usual for the problem if not given.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation, test and prediction.
        max_length: Maximum number of tokens per text or pair; longer ones are truncated.
        predict_file: What `predict` reads: a table with the same columns of texts, or a text file with one text a
            line, or `-` for standard input.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches; 0 is fastest for short texts.
    """

    predicts_records: ClassVar[bool] = True

    def __init__(
        self,
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        dataset_name: str | None = None,
        dataset_config_name: str | None = None,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str = "label",
        problem_type: ProblemType = SINGLE_LABEL,
        label_separator: str = ",",
        validation_share: float = 0.1,
        test_share: float | None = None,
        split_seed: int = 0,
        metrics: list[str] | None = None,
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
            max_length=max_length,
            predict_file=predict_file,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self.files = {TRAIN: train_file, VALIDATION: validation_file, TEST: test_file}
        if dataset_name is not None and any(self.files.values()):
            msg = "data.dataset_name and files are both set; leave out one or the other."
            raise ConfigurationError(msg)
        check_hold_out(validation_share, test_share, split_seed)
        if not label_separator:
            msg = "data.label_separator is empty, but labels need a mark between them, such as a comma."
            raise ConfigurationError(msg)
        self.dataset_name = dataset_name
        self.dataset_config_name = dataset_config_name
        self.text_column = text_column
        self.text_pair_column = text_pair_column
        self.label_column = label_column
        self.problem_type = problem_type
        self.label_separator = label_separator
        self.validation_share = validation_share
        self.test_share = test_share
        self.split_seed = split_seed
        self.metrics = metrics

    @cached_property
    def label_space(self) -> LabelSpace:
        """The labels of the training rows, or the name of the column of numbers."""
        if self.problem_type == REGRESSION:
            return LabelSpace([self.label_column], problem_type=REGRESSION, metrics=self.metrics)
        table = self._source.tables[TRAIN]
        labels = [label for row in self._labels_of(table) for label in row]
        names = self._source.names or sorted_names(labels)
        if not names:
            msg = f"{table.name}: the column {self.label_column!r} contains no label; fill it in."
            raise DataError(msg)
        if len(names) == 1:
            msg = (
                f"{table.name}: the column {self.label_column!r} contains only the label {names[0]!r}; two are needed, "
                "the second one for rows to which it does not apply."
            )
            raise DataError(msg)
        return LabelSpace(names, problem_type=self.problem_type, metrics=self.metrics)

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the hub."""
        return self.dataset_name

    def load_splits(self) -> dict[str, LabeledTexts]:
        """Reads and checks every row, holds out rows for validation if needed, and warns about doubtful ones."""
        splits = {split: self._labeled(table) for split, table in self._tables_with_labels().items()}
        self._warn_about_labels()
        self._warn_about_unused_options(splits)
        if TEST in splits:
            check_no_other_test(self.test_share, self._source.tables[TEST].name)
        elif self.test_share is not None:
            splits = self._with_held_out(splits, TEST, self.test_share)
        if VALIDATION not in splits:
            splits = self._with_held_out(splits, VALIDATION, self.validation_share)
        self.warn_about_repeated_texts(splits)
        if self.test_share is not None:
            self.warn_about_shared_texts(splits)
        return {name: splits[name] for name in (TRAIN, VALIDATION, TEST) if name in splits}

    def _warn_about_unused_options(self, splits: dict[str, LabeledTexts]) -> None:
        if self.dataset_name is None:
            warn_about_unused_options(self, ["dataset_config_name"], "data.dataset_name is not set")
        if self.problem_type != MULTI_LABEL:
            warn_about_unused_options(self, ["label_separator"], f"data.problem_type is {self.problem_type}")
        warn_about_unused_shares(self, splits)

    def _with_held_out(self, splits: dict[str, LabeledTexts], name: str, share: float) -> dict[str, LabeledTexts]:
        rows = splits[TRAIN]
        chosen = self._held_out(rows, name, share)
        self.held_out_splits.add(name)
        return splits | {TRAIN: rows.take(~chosen), name: rows.take(chosen)}

    def _held_out(self, rows: LabeledTexts, split: str, share: float) -> NDArray[np.bool_]:
        """Which training rows a split gets, (rows,)."""
        classes: Any = rows.labels if self.problem_type == SINGLE_LABEL else None
        chosen = held_out(len(rows), share, self.split_seed, classes)
        if chosen.any():
            return chosen
        purpose, option = ("validation", "validation_share") if split == VALIDATION else ("test", "test_share")
        name, count = self._source.tables[TRAIN].name, len(chosen)
        if count == 1:
            msg = f"{name} has one row, which cannot be in two splits, train and {split}; give more rows."
        elif classes is not None and len(set(classes)) == count:
            msg = (
                f"{name}: each of the {count} labels has one row only, so none can be held out for {purpose}; give "
                f"more rows per label, or a {purpose} file."
            )
        else:
            msg = (
                f"{name} has {count} rows, too few to hold out {share:g} of them; set data.{option} to "
                f"{1 / count:.2g} or more, or give a {purpose} file."
            )
        raise DataError(msg)

    def _tables_with_labels(self) -> dict[str, Table]:
        """The tables of all splits, without a test whose labels are hidden, and without rows that have none."""
        tables = dict(self._source.tables)
        from_hub = self.dataset_name is not None
        for split in [name for name in tables if name == TEST or (from_hub and name != TRAIN)]:
            table = tables[split]
            hidden = self._hidden_labels(table)
            if all(hidden):
                del tables[split]
                self._say_without(split, table)
            elif any(hidden):
                row = hidden.index(True)
                shown = table.column(self.label_column)[row]
                rank_zero_warn(
                    f"{split}: {sum(hidden)} of {len(table)} rows have no label, such as {table.where(row)} "
                    f"({'empty' if shown is None else repr(shown)}), and are left out."
                )
                tables[split] = table.take([row for row, is_hidden in enumerate(hidden) if not is_hidden])
        return tables

    def _hidden_labels(self, table: Table) -> list[bool]:
        if self.label_column not in table.columns and not get_close_matches(
            self.label_column, table.columns, cutoff=NEAR
        ):
            return [True] * len(table)
        is_regression = self.problem_type == REGRESSION
        train = self._source.tables[TRAIN]
        known = train.column(self.label_column) if is_regression else self.label_space.names
        return hidden_labels(table.column(self.label_column), known, self.problem_type)

    def _say_without(self, split: str, table: Table) -> None:
        """Keeps, or says, why a split with hidden labels is left out."""
        cells = table.columns.get(self.label_column)
        found = f"there is no column {self.label_column!r}" if cells is None else f"{cells[0]!r} in row 1"
        why = f"the labels of {table.name} are hidden ({found}, {len(table)} rows in all)"
        if split == TEST:
            self.without_test = why
        else:
            rank_zero_warn(f"{why}; rows of the training split are held out for validation instead.")

    def _warn_about_labels(self) -> None:
        if self.problem_type == REGRESSION:
            return
        table = self._source.tables[TRAIN]
        labels = (label for row in self._labels_of(table) for label in row)
        if doubts := doubts_about_labels(labels, table.column(self.label_column)):
            rank_zero_warn(f"{table.name}, column {self.label_column!r} has {'; '.join(doubts)}.")

    def load_prediction_splits(self) -> dict[str, LabeledTexts]:
        """The rows of a table, or the lines of a text file."""
        path = Path(self.predict_file or "")
        if path.suffix.lower() in (*READERS, ".json"):  # of which read_table says that it is none
            return {PREDICT: self._unlabeled(read_table(path, keep_blank_lines=True))}
        if self.text_pair_column is not None:
            msg = (
                f"--data.predict_file is {self.predict_file!r}, but pairs of texts need a table with the columns "
                f"{self.text_column!r} and {self.text_pair_column!r} ({', '.join(READERS)})."
            )
            raise DataError(msg)
        return {PREDICT: LabeledTexts(read_queries(self.predict_file))}

    @cached_property
    def _source(self) -> _Source:
        if self.dataset_name is not None:
            return self._from_hub(self.dataset_name)
        if self.files[TRAIN] is None:
            msg = "there is nothing to train on; set --data.train_file, or --data.dataset_name for the hub."
            raise DataError(msg)
        return _Source({split: read_table(Path(file)) for split, file in self.files.items() if file is not None})

    def _from_hub(self, name: str) -> _Source:
        splits = load_hub_dataset(name, self.dataset_config_name, HUB_REMEDY)
        columns = [self.text_column, self.label_column, *([self.text_pair_column] if self.text_pair_column else [])]
        tables = {split: hub_table(splits, name, found, columns) for split, found in named_splits(name, splits).items()}
        labels = tables[TRAIN].column(self.label_column) if TRAIN in tables else []
        labeled = [row for row, label in enumerate(labels) if label is not None]
        if not labeled:
            msg = f"the data set {name} has no split 'train' with labels; it has {', '.join(splits)}."
            raise DataError(msg)
        if len(labeled) < len(labels):
            rank_zero_warn(f"train: {len(labels) - len(labeled)} of {len(labels)} rows have no label and are left out.")
            tables[TRAIN] = tables[TRAIN].take(labeled)
        return _Source(tables, hub_label_names(splits, "train", self.label_column))

    def _unlabeled(self, table: Table) -> LabeledTexts:
        pairs = None if self.text_pair_column is None else table.texts(self.text_pair_column)
        return LabeledTexts(table.texts(self.text_column), None, pairs)

    def _labels_of(self, table: Table) -> list[list[str]]:
        if self.problem_type == MULTI_LABEL:
            return label_sets(table, self.label_column, self.label_separator)
        return [[label] for label in class_labels(table, self.label_column)]

    def _labeled(self, table: Table) -> LabeledTexts:
        rows = self._unlabeled(table)
        if self.problem_type == REGRESSION:
            return replace(rows, labels=finite_numbers(table, self.label_column))
        names = self.label_space.names
        indices = class_indices(table, self.label_column, self._labels_of(table), names)
        if self.problem_type == SINGLE_LABEL:
            return replace(rows, labels=[row[0] for row in indices])
        return replace(rows, labels=[[float(number in row) for number in range(len(names))] for row in indices])
