"""A test split without public labels is left out; one that lacks some keeps the others."""

import math
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_lightning.datamodules import TextClassificationDataModule
from lora_lightning.datamodules.hidden_labels import hidden_labels
from lora_lightning.errors import DataError
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from tests.datamodules.test_text_classification import TRAIN, error_of, module_of, save

NAMES = ["ham", "spam"]
HIDDEN = [-1, "-1", -1.0, "-1.0", "-100", "unlabeled", "Unlabeled", None, math.nan, "", " ", "?", "N/A", "nan", "none"]


@pytest.mark.parametrize("cell", HIDDEN, ids=repr)
def test_every_usual_spelling(cell: Any) -> None:
    assert hidden_labels([cell] * 3, NAMES, SINGLE_LABEL) == [True] * 3
    assert hidden_labels([cell, "ham"], NAMES, SINGLE_LABEL) == [True, False]


@pytest.mark.parametrize("word", ["withheld", "TBD", "0", "x", "secret label"])
def test_any_other_word_in_every_row(word: str) -> None:
    assert all(hidden_labels([word] * 3, NAMES, SINGLE_LABEL))
    assert not any(hidden_labels([word, "ham"], NAMES, SINGLE_LABEL))  # a wrong label, which is refused


@pytest.mark.parametrize(("cell", "names"), [("-1", ["-1", "1"]), (-1, ["-1", "1"]), ("none", ["none", "some"])])
def test_a_label_that_training_has_is_not_hidden(cell: Any, names: list[str]) -> None:
    assert not any(hidden_labels([cell] * 3, names, SINGLE_LABEL))


@pytest.mark.parametrize("cell", ["HAM", "Spam", "spamm"])
def test_a_misspelt_label_is_not_hidden(cell: str) -> None:
    assert not any(hidden_labels([cell] * 3, NAMES, SINGLE_LABEL))


@pytest.mark.parametrize(("cell", "hidden"), [([], True), ("", True), ([-1], True), ([-1, -1], True), (["ham"], False)])
def test_lists_of_labels(cell: Any, hidden: bool) -> None:
    assert all(hidden_labels([cell] * 3, NAMES, MULTI_LABEL)) == hidden


def test_a_text_to_which_no_label_applies_is_not_hidden() -> None:
    assert hidden_labels([[], ["ham"], "", "ham"], NAMES, MULTI_LABEL) == [False] * 4


@pytest.mark.parametrize(
    ("cells", "known", "hidden"),
    [
        ([-1.0, -1.0], [0.0, 5.0], [True, True]),  # STS-B
        (["-1", "-1"], ["0.5"], [True, True]),
        ([-1.0, 2.0], [0.0, 5.0], [False, False]),
        ([-1.0, -1.0], [-1.0, 5.0], [False, False]),
        ([None, 2.0, "", math.nan], [0.0], [True, False, True, True]),
        ([3.0, 3.0], [0.0], [False, False]),
    ],
)
def test_numbers(cells: list[Any], known: list[Any], hidden: list[bool]) -> None:
    assert hidden_labels(cells, known, REGRESSION) == hidden


@pytest.mark.parametrize("label", [-1, "unlabeled", ""])
def test_a_test_file_without_labels_is_left_out(tmp_path: Path, label: Any) -> None:
    test = save(tmp_path / "test.csv", [{"text": f"new {row}", "label": label} for row in range(5)])
    module = module_of(tmp_path, TRAIN, test_file=test)
    assert list(module.raw_splits) == ["train", "val"]
    module.check_splits("fit")
    assert module.without_test == (
        f"the labels of {tmp_path}/test.csv are hidden ({str(label)!r} in row 1, 5 rows in all)"
    )
    with pytest.raises(DataError, match=re.escape("are hidden ('")):
        module.check_splits("test")


def test_a_test_file_without_the_column_is_left_out(tmp_path: Path) -> None:
    test = save(tmp_path / "test.csv", [{"id": 1, "text": "new"}])
    module = module_of(tmp_path, TRAIN, test_file=test)
    assert list(module.raw_splits) == ["train", "val"]
    assert "there is no column 'label'" in module.without_test


def test_a_misspelt_column_is_refused(tmp_path: Path) -> None:
    test = save(tmp_path / "test.csv", [{"labels": "ham", "text": "new"}])
    assert "has no column 'label'; did you mean 'labels'?" in error_of(module_of(tmp_path, TRAIN, test_file=test))


def test_rows_without_a_label_are_counted_and_left_out_of_the_test(tmp_path: Path) -> None:
    rows = [{"text": f"new {row}", "label": ["ham", "-1", "spam"][row % 3]} for row in range(6)]
    module = module_of(tmp_path, TRAIN, test_file=save(tmp_path / "test.csv", rows))
    with pytest.warns(UserWarning, match=r"test: 2 of 6 rows have no label, such as .*test\.csv, line 3 \('-1'\), and"):
        splits = module.load_splits()
    assert splits["test"].texts == ["new 0", "new 2", "new 3", "new 5"]
    assert splits["test"].labels == [0, 1, 0, 1]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_files_to_learn_and_validate_on_need_every_label(tmp_path: Path, split: str) -> None:
    rows = [*TRAIN, {"text": "new", "label": ""}]
    other = {} if split == "train" else {"validation_file": save(tmp_path / "other.csv", rows)}
    assert "the label in column 'label' is empty" in error_of(
        module_of(tmp_path, rows if split == "train" else TRAIN, **other)
    )


def test_a_hub_data_set_may_lack_labels_in_every_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(labels: list[str | None]) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"text": [f"w{row} {labels}" for row in range(len(labels))], "label": labels})

    content = datasets.DatasetDict(
        train=split(["ham", "spam", None, "ham", "spam"]), validation=split(["-1"] * 3), test=split(["unlabeled"] * 2)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: content)
    module = TextClassificationDataModule(dataset_name="some/data", validation_share=0.5)
    with pytest.warns(UserWarning) as said:  # noqa: PT030
        splits = module.load_splits()
    assert [str(warning.message) for warning in said] == [
        "train: 1 of 5 rows have no label and are left out.",
        (
            "the labels of some/data, validation are hidden ('-1' in row 1, 3 rows in all); rows of the training split "
            "are held out for validation instead."
        ),
    ]
    assert {name: len(rows.texts) for name, rows in splits.items()} == {"train": 2, "val": 2}
    assert module.without_test == "the labels of some/data, test are hidden ('unlabeled' in row 1, 2 rows in all)"
