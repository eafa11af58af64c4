"""Queries come from a text file or standard input, whatever its encoding marks and line ends."""

import io
import sys
from pathlib import Path

import pytest

from lora_lightning.datamodules.queries import check_texts, read_queries
from lora_lightning.errors import DataError

# What a user may have in a file or pipe, and the queries in it.
CONTENTS = {
    "newline at the end": (b"hi\nbye\n", ["hi", "bye"]),
    "no newline at the end": (b"hi\nbye", ["hi", "bye"]),
    "empty lines at the end": (b"hi\nbye\n\n \n\n", ["hi", "bye"]),
    "byte order mark": (b"\xef\xbb\xbfhi\nbye\n", ["hi", "bye"]),
    "windows": (b"hi\r\nbye\r\n", ["hi", "bye"]),
    "not ascii": ("zürich, 東京 🎷\nbye".encode(), ["zürich, 東京 🎷", "bye"]),
    "space inside": (b"  hi there\nbye", ["  hi there", "bye"]),
    "separators that end no line": ("a\u2028b\x0cc\x85d\ne".encode(), ["a\u2028b\x0cc\x85d", "e"]),
}


def pipe(content: bytes, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding=encoding))


@pytest.mark.parametrize(("content", "expected"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_queries_are_the_lines_of_a_file_or_of_standard_input(
    source: str, content: bytes, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "queries.txt"
    if source == "stdin":
        pipe(content, monkeypatch, encoding="latin-1")  # whatever the locale says, UTF-8 is read
    else:
        file.write_bytes(content)
    assert read_queries("-" if source == "stdin" else str(file)) == expected


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "queries.txt").write_text("hi")
    assert read_queries("~/queries.txt") == ["hi"]


@pytest.mark.parametrize(
    ("content", "wording"),
    [
        (b"hi\n\nbye\n", "{name}, line 2: the text is empty; remove the row or fill it in."),
        (b"hi\nbye\n \t\nhello", "{name}, line 3: the text is empty; remove the row or fill it in."),
        (b"\nhi", "{name}, line 1: the text is empty; remove the row or fill it in."),
        (b"", "{name} contains no query; write one query per line."),
        (b" \n\n", "{name} contains no query; write one query per line."),
        (b"hi\ncaf\xe9\n", "{name}, line 2: byte 6 of the file is not UTF-8; save the file in UTF-8."),
    ],
    ids=["empty line", "blank line", "first line", "empty file", "blank file", "not UTF-8"],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_wrong_queries_name_the_file_the_place_and_the_remedy(
    source: str, content: bytes, wording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "queries.txt"
    file.write_bytes(content)
    pipe(content, monkeypatch)
    asked = "-" if source == "stdin" else str(file)
    with pytest.raises(DataError) as raised:
        read_queries(asked)
    name = "standard input" if source == "stdin" else str(file)
    assert str(raised.value) == wording.format(name=name, option=f"--data.predict_file {asked}")


@pytest.mark.parametrize(
    ("asked", "wording"),
    [
        (None, r"predict needs --data\.predict_file with a text file of one query per line, or - for standard input\."),
        ("absent.txt", r"--data\.predict_file .*absent\.txt: no such file or directory; give a UTF-8 text file"),
        ("", r"--data\.predict_file .*: is a directory; give a UTF-8 text file"),
    ],
    ids=["none", "absent", "folder"],
)
def test_no_queries_at_all_is_an_error_with_a_remedy(asked: str | None, wording: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=wording):
        read_queries(None if asked is None else str(tmp_path / asked))


def test_check_texts_names_the_first_empty_one() -> None:
    check_texts(["a", " b"], "file", "row")
    with pytest.raises(DataError, match=r"^rows\.json, row 2: the text is empty"):
        check_texts((text for text in ["a", "\u3000\t", ""]), "rows.json", "row")
