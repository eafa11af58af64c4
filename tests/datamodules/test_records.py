"""JSON files and texts are read whole, or an error names the file and the line."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.datamodules.hub import named_splits
from lora_lightning.datamodules.records import Record, hub_records, read_records, text_field
from lora_lightning.errors import DataError
from lora_lightning.runs.tables import read_text


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_comes_back_as_it_is(tmp_path: Path) -> None:
    assert read_text(write(tmp_path / "a.txt", "\ufeffé\r\n\n x \u2028 y\n")) == "é\r\n\n x \u2028 y\n"


def test_bytes_that_are_no_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\ntwo\nth\xffree\n")
    with pytest.raises(DataError, match=rf"{path}, line 3: byte 10 of the file is not UTF-8"):
        read_text(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read \(no such file"):
        read_text(tmp_path / "none.txt")


def test_tables_and_lists_give_the_same_records(tmp_path: Path) -> None:
    rows = [{"a": "x\u2028y"}, {"a": "é", "b": None, "c": [1]}]
    lines = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    listed = write(tmp_path / "a.json", json.dumps(rows, indent=1))
    table = write(tmp_path / "a.csv", "a,c\nx\u2028y,\né,2\n")
    expected = [{"a": "x\u2028y"}, {"a": "é", "c": [1]}]
    assert [record.fields for record in read_records(lines)] == expected
    assert [record.fields for record in read_records(listed)] == expected
    assert [record.fields["a"] for record in read_records(table)] == [row["a"] for row in expected]
    assert [record.where for record in read_records(lines)] == [f"{lines}, line 1", f"{lines}, line 2"]
    assert read_records(listed)[1].where == f"{listed}, record 2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n["a"]\n', r'a.jsonl, line 2: expected an object, found \["a"\]'),
        ("a.json", '{"a": 1}', "a.json is not a list of records"),
        ("a.jsonl", '{"a": "b"}\n{"a": ["c \\ud83d"]}\n', r"a.jsonl, line 2: '\\ud83d' is half of a character"),
        ("a.json", '[{"a": "\\ude00"}]', r"a.json, record 1: '\\ude00' is half of a character"),
        ("a.json", "[1]", "a.json, record 1: expected an object with named fields, found 1"),
        ("a.json", "[]", "a.json has no rows; use a file with at least one"),
        ("a.json", "[", "a.json is not JSON"),
        ("a.json", '[{"a": 1, "a": 2}]', r"a.json is not JSON \(the name 'a' occurs twice"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.txt", "x", r"its extension must be one of \.csv, \.tsv, \.jsonl, \.parquet, \.json\."),
    ],
)
def test_malformed_files_are_named_with_their_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"b": "x"}, "f, line 1: the field 'a' is missing; the record has b; add it"),
        ({}, "the record has none"),
        ({"a": 3}, "the field 'a' must be a text, but it is 3"),
        ({"a": b"x"}, "the field 'a' must be a text, but it is \"b'x'\""),  # as Parquet may
        ({"a": " \n"}, "the field 'a' is empty"),
    ],
)
def test_fields_must_hold_texts(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        text_field(Record("f, line 1", fields), "a")


def test_a_field_may_be_allowed_to_be_empty_but_not_to_be_missing() -> None:
    assert text_field(Record("f", {"a": " "}), "a", may_be_empty=True) == " "
    with pytest.raises(DataError, match="is missing"):
        text_field(Record("f", {}), "a", may_be_empty=True)


def test_the_hub_gives_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # noqa: PLC0415

    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs["download_config"].local_files_only))
        rows = {"train": [{"text": "a"}, {"text": "b"}], "validation": [{"text": "c"}], "unsupervised": [{"text": "d"}]}
        return {name: datasets.Dataset.from_list(part) for name, part in rows.items()}

    monkeypatch.setattr("datasets.load_dataset", load)
    found = hub_records("owner/name", "config", "do this.")
    assert asked == [(("owner/name", "config"), True)]
    assert list(found) == ["train", "val"]
    assert found["train"][1] == Record("owner/name, train, row 2", {"text": "b"})


def test_what_is_wrong_with_a_data_set_that_is_there_is_passed_on(tmp_path: Path) -> None:
    lines = [f"- config_name: {name}\n  data_files: {name}.jsonl" for name in ("first", "second")]
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n")
    for name in ("first", "second"):
        write(tmp_path / f"{name}.jsonl", '{"text": "a"}\n')
    with pytest.raises(DataError, match=r"could not be loaded: .*first.*second"):
        hub_records(str(tmp_path), None, "do this.")
    assert hub_records(str(tmp_path), "second", "do this.")["train"][0].fields == {"text": "a"}


def test_no_network_is_a_remedy_and_a_split_train_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"the data set no/such could not be downloaded from the hub; do this\."):
        hub_records("no/such", None, "do this.")
    monkeypatch.setattr("datasets.load_dataset", lambda *_args, **_kwargs: {"test": []})
    with pytest.raises(DataError, match="has no split train, only test"):
        hub_records("no/such", None, "do this.")


def test_every_usual_name_of_a_split_is_known_and_the_others_are_named() -> None:
    with pytest.warns(UserWarning, match=r"owner/name has splits that are not read: val, extra\."):
        found = named_splits("owner/name", ["val", "validation", "train", "test", "extra"])
    assert found == {"train": "train", "val": "validation", "test": "test"}
    assert named_splits("owner/name", ["train", "dev"]) == {"train": "train", "val": "dev"}
