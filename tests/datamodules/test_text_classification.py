"""A user's own table: every kind of label and format, held-out rows, duplicates, and what is wrong by file and row."""

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lora_lightning.datamodules import TextClassificationDataModule
from lora_lightning.datamodules.sequence_classification import LabeledTexts
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpace
from tests.conftest import TinyBackbone

Rows = list[dict[str, Any]]
TRAIN: Rows = [{"text": f"w{row} w{row + 1}", "label": ["spam", "ham"][row % 2]} for row in range(20)]
OTHER: Rows = [{"text": f"w{row} w3 w4", "label": ["spam", "ham", "ham"][row % 3]} for row in range(6)]


def save(path: Path, rows: Rows) -> str:
    """Writes rows as CSV, TSV or JSON lines."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        lines = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def module_of(folder: Path, train: Rows, ending: str = "csv", **settings: Any) -> TextClassificationDataModule:
    return TextClassificationDataModule(train_file=save(folder / f"train.{ending}", train), **settings)


def error_of(module: TextClassificationDataModule) -> str:
    with pytest.raises(DataError) as raised:
        module.load_splits()
    return str(raised.value)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_files_become_splits_with_sorted_labels(tmp_path: Path, ending: str) -> None:
    files = {
        f"{name}_file": save(tmp_path / f"{name}.{ending}", rows)
        for name, rows in (("train", TRAIN), ("validation", OTHER), ("test", OTHER[:3]))
    }
    module = TextClassificationDataModule(**files)
    assert module.label_space == LabelSpace(["ham", "spam"])
    assert module.load_splits() == {
        "train": LabeledTexts([row["text"] for row in TRAIN], [1, 0] * 10),
        "val": LabeledTexts([row["text"] for row in OTHER], [1, 0, 0, 1, 0, 0]),
        "test": LabeledTexts([row["text"] for row in OTHER[:3]], [1, 0, 0]),
    }


def test_columns_have_the_names_the_user_gives(tmp_path: Path) -> None:
    rows = [{"id": row, "question": f"q{row}", "answer": f"a{row}", "stars": row % 12} for row in range(24)]
    module = module_of(
        tmp_path, rows, text_column="question", text_pair_column="answer", label_column="stars", validation_share=0.25
    )
    assert module.label_space.names == [str(number) for number in range(12)]  # 10 after 9
    splits = module.load_splits()
    every = [row for part in splits.values() for row in zip(part.texts, part.pairs or [], part.labels, strict=True)]
    assert sorted(every) == sorted((row["question"], row["answer"], row["stars"]) for row in rows)


def test_a_share_of_every_class_is_held_out_where_there_is_no_validation_file(tmp_path: Path) -> None:
    splits = module_of(tmp_path, TRAIN, validation_share=0.2).load_splits()
    assert list(splits) == ["train", "val"]
    assert sorted(splits["val"].labels or []) == [0, 0, 1, 1]
    assert sorted(splits["train"].texts + splits["val"].texts) == sorted(row["text"] for row in TRAIN)
    again = module_of(tmp_path, TRAIN, validation_share=0.2).load_splits()
    assert again == splits
    assert module_of(tmp_path, TRAIN, validation_share=0.2, split_seed=1).load_splits() != splits


def test_too_few_rows_to_hold_any_out(tmp_path: Path) -> None:
    message = error_of(module_of(tmp_path, TRAIN[:4]))
    assert message == (
        f"{tmp_path}/train.csv has 4 rows, too few to hold out 0.1 of them; set data.validation_share to 0.25 or "
        "more, or give a validation file."
    )


def test_labels_of_one_row_each_cannot_be_held_out(tmp_path: Path) -> None:
    rows = [{"text": f"w{row}", "label": f"l{row}"} for row in range(36)]
    assert error_of(module_of(tmp_path, rows)) == (
        f"{tmp_path}/train.csv: each of the 36 labels has one row only, so none can be held out for validation; give "
        "more rows per label, or a validation file."
    )


def test_doubtful_labels_and_rows_are_warned_about_once_each(tmp_path: Path) -> None:
    labels = ["a|b", "A|B", "nan", "c"] * 5
    rows = [{"text": f"w{row}" if row else "w4", "label": label} for row, label in enumerate(labels)]
    rows[1]["text"] = "w2"
    with pytest.warns(UserWarning) as said:  # noqa: PT030
        module_of(tmp_path, rows, problem_type=MULTI_LABEL).load_splits()
    sentences = [str(warning.message) for warning in said]
    assert (
        f"{tmp_path}/train.csv, column 'label' has labels that differ only in case, spaces, Unicode form or "
        in (sentences[0])
    )
    assert (
        "'A|B' (5 rows) / 'a|b' (5 rows); words for a missing value: 'nan' (5 rows); labels that contain '|'"
        in (sentences[0])
    )
    assert "1 text occurs with different labels, such as 'w2' with 'A|B' and 'nan'" in sentences[-1]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_several_labels_a_text(tmp_path: Path, ending: str) -> None:
    sets = [["joy"], ["joy", "love"], [], ["anger"], ["love", "anger"], ["joy", "anger", "love"]] * 4
    rows = [
        {"text": f"w{row}", "label": "; ".join(labels) if ending == "csv" else labels}
        for row, labels in enumerate(sets)
    ]
    module = module_of(tmp_path, rows, ending, problem_type=MULTI_LABEL, label_separator=";", validation_share=0.5)
    assert module.label_space == LabelSpace(["anger", "joy", "love"], problem_type=MULTI_LABEL)
    for part in module.load_splits().values():
        for text, labels in zip(part.texts, part.labels or [], strict=True):
            expected = sets[int(text[1:])]
            assert labels == [float(name in expected) for name in ("anger", "joy", "love")]


def test_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"w{row}", "label": f" {row / 4}"} for row in range(10)]
    module = module_of(tmp_path, rows, problem_type=REGRESSION, metrics=["pearson"])
    assert module.label_space == LabelSpace(["label"], problem_type=REGRESSION, metrics=["pearson"])
    splits = module.load_splits()
    assert {text: label for part in splits.values() for text, label in zip(part.texts, part.labels, strict=True)} == {
        f"w{row}": row / 4 for row in range(10)
    }


@pytest.mark.parametrize(
    ("problem_type", "label", "wording"),
    [
        (SINGLE_LABEL, None, "the label in column 'label' is empty; every row needs a word or an integer."),
        (SINGLE_LABEL, " ", "the label in column 'label' is empty; every row needs a word or an integer."),
        (SINGLE_LABEL, float("nan"), "the label in column 'label' holds nan; every row needs a word or an integer."),
        (SINGLE_LABEL, 2.5, "the label in column 'label' holds 2.5; every row needs"),
        (SINGLE_LABEL, ["spam"], "the label in column 'label' holds ['spam']; every row needs"),
        (
            MULTI_LABEL,
            None,
            "the column 'label' must contain a list of labels, or a text with ',' between them, but contains nothing.",
        ),
        (
            MULTI_LABEL,
            3,
            "the column 'label' must contain a list of labels, or a text with ',' between them, but contains 3.",
        ),
        (MULTI_LABEL, ["spam", None], "the label in column 'label' is empty"),
        (REGRESSION, "high", "the column 'label' must contain a finite number, but contains 'high'."),
        (
            REGRESSION,
            "1,5",
            (
                "the column 'label' must contain a finite number, but contains '1,5', whose comma may separate "
                "decimals or thousands; write it with a decimal point and without commas."
            ),
        ),
        (REGRESSION, "nan", "the column 'label' must contain a finite number, but contains 'nan'."),
        (REGRESSION, float("nan"), "the column 'label' must contain a finite number, but contains nan."),
        (REGRESSION, float("inf"), "the column 'label' must contain a finite number, but contains inf."),
        (REGRESSION, None, "the column 'label' must contain a finite number, but contains nothing."),
        (REGRESSION, True, "the column 'label' must contain a finite number, but contains True."),
    ],
)
def test_a_label_that_is_none_is_named_with_its_row(
    tmp_path: Path, problem_type: Any, label: Any, wording: str
) -> None:
    good = {SINGLE_LABEL: "ham", MULTI_LABEL: ["ham"], REGRESSION: 1}[problem_type]
    rows = [{"text": f"w{row}", "label": good} for row in range(9)] + [{"text": "w9", "label": label}]
    message = error_of(module_of(tmp_path, rows, "jsonl", problem_type=problem_type))
    assert message.startswith(f"{tmp_path}/train.jsonl, line 10: {wording}")


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_lacks_is_named_with_the_nearest(tmp_path: Path, problem_type: Any, split: str) -> None:
    other = save(tmp_path / "other.csv", [*OTHER, {"text": "new", "label": "HAM"}])
    message = error_of(module_of(tmp_path, TRAIN, problem_type=problem_type, **{f"{split}_file": other}))
    assert message == (
        f"{tmp_path}/other.csv, line 8: the label 'HAM' in column 'label' is not one of the 2 known labels; "
        "the choices are ham, spam."
    )


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_one_label_alone_is_nothing_to_learn(tmp_path: Path, problem_type: Any) -> None:
    rows = [{"text": f"w{row}", "label": "ham"} for row in range(9)]
    message = error_of(module_of(tmp_path, rows, problem_type=problem_type))
    assert "the column 'label' contains only the label 'ham'; two are needed, " in message


def test_no_label_in_any_set_is_nothing_to_learn(tmp_path: Path) -> None:
    rows = [{"text": f"w{row}", "label": ""} for row in range(9)]
    assert "contains no label" in error_of(module_of(tmp_path, rows, problem_type=MULTI_LABEL))


@pytest.mark.parametrize("column", ["text", "text_pair"])
def test_an_empty_text_is_named_with_its_row(tmp_path: Path, column: str) -> None:
    rows = [{"text": f"w{row}", "text_pair": "w1", "label": row % 2} for row in range(9)]
    rows[4][column] = " "
    message = error_of(module_of(tmp_path, rows, text_pair_column="text_pair"))
    assert message.startswith(f"{tmp_path}/train.csv, line 6: the text in column {column!r} is empty")


def test_duplicates_between_splits_are_counted(tmp_path: Path) -> None:
    seen = [{"text": f" {TRAIN[row]['text']} ", "label": "ham"} for row in (3, 7)]
    test = save(tmp_path / "test.csv", [*OTHER, *seen])
    validation = save(tmp_path / "validation.csv", OTHER)
    module = module_of(tmp_path, TRAIN, validation_file=validation, test_file=test)
    with pytest.warns(
        UserWarning, match=r"2 of 8 rows of the test split are also in the training data, such as ' w3 w4 '"
    ):
        module.load_splits()


def test_the_same_text_in_another_pair_is_no_duplicate(tmp_path: Path) -> None:
    rows = [{"text": "w1", "other": f"w{row}", "label": row % 2} for row in range(20)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module_of(tmp_path, rows, text_pair_column="other").load_splits()


@pytest.mark.parametrize(
    ("settings", "wording"),
    [
        ({"train_file": "a.csv", "dataset_name": "imdb"}, "data.dataset_name and files are both set"),
        ({"train_file": "a.csv", "validation_share": 0.0}, "data.validation_share is 0.0, but it must be in (0, 1)"),
        ({"train_file": "a.csv", "validation_share": 1.0}, "data.validation_share is 1.0, but it must be in (0, 1)"),
        ({"train_file": "a.csv", "split_seed": -1}, "data.split_seed is -1, but it must be at least 0"),
        ({"train_file": "a.csv", "label_separator": ""}, "data.label_separator is empty"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], wording: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TextClassificationDataModule(**settings)
    assert wording in str(raised.value)


def test_nothing_to_train_on() -> None:
    message = error_of(TextClassificationDataModule())
    assert message == "there is nothing to train on; set --data.train_file, or --data.dataset_name for the hub."


def test_numbers_reach_the_batches_as_they_are(tmp_path: Path, tiny_backbone: TinyBackbone) -> None:
    rows = [{"text": f"w{row}", "label": row / 4} for row in range(10)]
    module = module_of(
        tmp_path,
        rows,
        problem_type=REGRESSION,
        backbone=str(tiny_backbone("bert")),
        cache_dir=str(tmp_path / "cache"),
    )
    module.prepare_data()
    module.setup("fit")
    (batch,) = module.val_dataloader()
    assert batch["labels"].dtype == torch.float32
    assert float(batch["labels"]) * 4 == int(module.texts("val")[0][1:])


def test_another_held_out_share_names_another_cache(tmp_path: Path, tiny_backbone: TinyBackbone) -> None:
    backbone = str(tiny_backbone("bert"))
    files = {module_of(tmp_path, TRAIN, backbone=backbone, split_seed=seed).cache_file for seed in (0, 0, 1)}
    assert len(files) == 2


@pytest.mark.parametrize(
    ("max_length", "pair", "wording"),
    [
        (4, True, None),
        (41, True, "has 40 positions; set data.max_length to at most 40"),
        (41, False, "has 40 positions"),
        (40, False, None),
    ],
)
def test_texts_longer_than_the_models_positions_are_refused(
    tmp_path: Path, tiny_backbone: TinyBackbone, max_length: int, pair: bool, wording: str | None
) -> None:
    rows = [{"text": "w1 " * 50, "other": "w2 " * 50, "label": row % 2} for row in range(4)]
    module = TextClassificationDataModule(
        train_file=save(tmp_path / "train.csv", rows),
        text_pair_column="other" if pair else None,
        validation_share=0.5,
        backbone=str(tiny_backbone("bert")),
        max_length=max_length,
    )
    if wording is None:
        assert module.encode("train", module.load_splits()["train"]).lengths.max() == max_length
    else:
        with pytest.raises(ConfigurationError, match=wording):
            module.encode("train", module.load_splits()["train"])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_predict_reads_a_table_without_labels(tmp_path: Path, ending: str) -> None:
    rows = [{"other": "x", "question": "w1 w2", "answer": "w3"}, {"other": "y", "question": "w4", "answer": "w5 w6"}]
    module = TextClassificationDataModule(
        predict_file=save(tmp_path / f"rows.{ending}", rows), text_column="question", text_pair_column="answer"
    )
    assert module.load_prediction_splits() == {"predict": LabeledTexts(["w1 w2", "w4"], None, ["w3", "w5 w6"])}


def test_predict_takes_no_json_for_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "w1"}]')
    with pytest.raises(DataError, match=r"rows\.json cannot be read as a table; its extension must be one of"):
        TextClassificationDataModule(predict_file=str(tmp_path / "rows.json")).load_prediction_splits()


def test_predict_reads_lines(tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("w1, w2\nw3\n")
    module = TextClassificationDataModule(predict_file=str(tmp_path / "queries.txt"))
    assert module.load_prediction_splits() == {"predict": LabeledTexts(["w1, w2", "w3"])}


@pytest.mark.parametrize("file", ["queries.txt", "-", None])
def test_lines_are_no_pairs(file: str | None) -> None:
    module = TextClassificationDataModule(predict_file=file, text_pair_column="answer")
    with pytest.raises(DataError, match=r"pairs of texts need a table with the columns 'text' and 'answer' \(\.csv"):
        module.load_prediction_splits()


def hub_of(**splits: dict[str, list[Any]]) -> datasets.DatasetDict:
    label = datasets.ClassLabel(names=["spam", "ham"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    return datasets.DatasetDict({name: datasets.Dataset.from_dict(rows, features) for name, rows in splits.items()})


def test_a_hub_data_set_keeps_its_own_order_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **_: Any) -> datasets.DatasetDict:
        asked.append(arguments)
        rows = {"text": ["w1", "w2"], "label": [1, 0]}
        return hub_of(train=rows, validation={"text": ["w3"], "label": [1]}, test={"text": ["w4"], "label": [-1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    module = TextClassificationDataModule(dataset_name="some/data", dataset_config_name="plain")
    assert module.label_space.names == ["spam", "ham"]
    assert module.load_splits() == {"train": LabeledTexts(["w1", "w2"], [1, 0]), "val": LabeledTexts(["w3"], [1])}
    assert asked == [("some/data", "plain")]


def test_a_hub_data_set_with_lists_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    label = datasets.List(datasets.ClassLabel(names=["joy", "love", "fear"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = datasets.Dataset.from_dict({"text": ["w1", "w2"], "label": [[0, 2], []]}, features)
    content = datasets.DatasetDict({"train": rows, "test": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: content)
    module = TextClassificationDataModule(dataset_name="some/data", problem_type=MULTI_LABEL, validation_share=0.5)
    assert module.label_space.names == ["joy", "love", "fear"]
    with pytest.warns(UserWarning, match="of the test split are also in the training data"):
        splits = module.load_splits()
    assert splits["test"].labels == [[1, 0, 1], [0, 0, 0]]


def test_a_hub_column_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub_of(train={"text": ["w1"], "label": [0]}))
    message = error_of(TextClassificationDataModule(dataset_name="some/data", text_column="txt"))
    assert message == "some/data, train has no column 'txt'; did you mean 'text'?"


def test_a_hub_without_network_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    message = error_of(TextClassificationDataModule(dataset_name="nobody/nothing"))
    assert message == (
        "the data set nobody/nothing could not be downloaded from the hub; without network set --data.train_file to a "
        "file of your own."
    )


def test_inputs_may_be_mappings(tmp_path: Path) -> None:
    module = module_of(tmp_path, TRAIN, text_pair_column="other")
    module.predict_file = str(module.save_inputs([{"text": "a\nb", "other": "c", "more": 1}], tmp_path))
    assert module.load_prediction_splits() == {"predict": LabeledTexts(["a\nb"], None, ["c"])}
    with pytest.raises(DataError, match="input 1 cannot be written as JSON"):
        module.save_inputs([{"text": object()}], tmp_path)
    with pytest.raises(DataError, match=r"input 2 is .* or give all inputs as mappings"):
        module.save_inputs(["a", {"text": "b"}], tmp_path)


def test_a_blank_line_to_predict_is_named(tmp_path: Path) -> None:
    module = module_of(tmp_path, TRAIN)
    (tmp_path / "a.csv").write_text("text\none\n\ntwo\n")
    module.predict_file = str(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv, line 3: the text in column 'text' is empty"):
        module.load_prediction_splits()
