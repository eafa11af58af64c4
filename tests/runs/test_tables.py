"""Tables of every format come back cell by cell; a wrong row is named by file and place."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import Table as ArrowTable
from pyarrow import parquet

from lora_lightning.errors import DataError
from lora_lightning.runs.tables import read_table, read_tsv

CELLS = ["plain", 'an "unclosed quote', '"', "it's", "commas, and; more", "zürich 東京 🎷", "a\u2028b\x0cc\x85d", "  "]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("text", "label"), *rows])
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(row) + "\n" for row in [("text", "label"), *rows]), encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows]
        path.write_text("".join(lines), encoding="utf-8")
    else:
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        parquet.write_table(ArrowTable.from_pydict(columns), path)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_cells_come_back_as_they_were(tmp_path: Path, ending: str) -> None:
    rows = [(cell, str(number)) for number, cell in enumerate(CELLS)]
    table = read_table(write(tmp_path / f"rows.{ending}", rows))
    assert list(zip(table.column("text"), table.column("label"), strict=True)) == rows
    assert len(table) == len(rows)
    unit, first = {"csv": ("line", 2), "tsv": ("line", 2), "jsonl": ("line", 1), "parquet": ("row", 1)}[ending]
    assert table.where(1) == f"{tmp_path}/rows.{ending}, {unit} {first + 1}"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_an_ending_may_be_in_capitals(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"rows.{ending}", [("a", "b")])
    assert read_table(path.rename(tmp_path / f"ROWS.{ending.upper()}")).texts("text") == ["a"]


def test_a_csv_cell_may_hold_line_ends_and_long_documents(tmp_path: Path) -> None:
    rows = [("two\nlines", "a"), ("x" * 200_000, "b"), ("after", "c")]
    table = read_table(write(tmp_path / "rows.csv", rows))
    assert table.column("text") == [text for text, _ in rows]
    assert [table.where(row).rsplit(" ")[-1] for row in range(3)] == ["2", "4", "5"]  # where a row starts


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n"])
def test_line_ends_and_marks_are_not_part_of_cells(
    tmp_path: Path, ending: str, line_end: str, mark: str, last: str
) -> None:
    path = tmp_path / f"rows.{ending}"
    separator = {"csv": ",", "tsv": "\t"}[ending]
    lines = [separator.join(cells) for cells in (("text", "label"), ("a", "b"), ("c", "d"))]
    path.write_bytes((mark + "\n".join(lines) + last).replace("\n", line_end).encode())
    assert read_table(path).columns == {"text": ["a", "c"], "label": ["b", "d"]}


WRONG: dict[str, tuple[str, str | bytes, str]] = {
    "csv with a column too few": (
        "csv",
        "text,label\na,b\nc\n",
        "line 3: 1 column where 2 are needed (text, label); a cell with a comma",
    ),
    "csv with a column too many": (
        "csv",
        "text,label\na,b,c\n",
        "line 2: 3 columns where 2 are needed (text, label); a c",
    ),
    "csv with an open quote": ("csv", 'text,label\na,b\n"c,d\ne,f\n', "line 3: unexpected end of data; a cell with"),
    "csv with text after a quote": ("csv", 'text,label\n"a"b,c\n', "line 2: ',' expected after '\"'; a cell with"),
    "tsv with a column too few": ("tsv", "text\tlabel\na\tb\n\nc\td\n", "line 3: 1 column where 2 are needed"),
    "tsv with a column too many": (
        "tsv",
        "text\tlabel\na\tb\tc\n",
        "line 2: 3 columns where 2 are needed (text, label); no cell may",
    ),
    "semicolons": (
        "csv",
        "text;label\na, or so;b\n",
        "line 2: 2 columns where 1 are needed (text;label); its first line",
    ),
    "column twice": ("tsv", "text\ttext\na\tb\n", "line 1: the column 'text' occurs twice; every column needs"),
    "header only": ("csv", "text,label\n", " has no rows; give a file with at least one."),
    "empty csv": ("csv", "", " has no rows; give a file with at least one."),
    "empty tsv": ("tsv", "", " has no rows; give a file with at least one."),
    "empty json lines": ("jsonl", "\n\n", " has no rows; give a file with at least one."),
    "no json": ("jsonl", '{"text": "a"}\n{"text": \n', "line 2: not JSON ("),
    "a name twice in json lines": (
        "jsonl",
        '{"text": "a"}\n{"text": "b", "label": 1, "label": 2}\n',
        "line 2: not JSON (the name 'label' occurs twice in one object)",
    ),
    "empty line in json lines": ("jsonl", '{"text": "a"}\n\n{"text": "b"}\n', "line 2: not JSON ("),
    "no object": ("jsonl", '{"text": "a"}\n["b"]\n', 'line 2: expected an object, found ["b"].'),
    "not utf-8": ("csv", b"text,label\nok,a\ncaf\xe9,b\n", "line 3: byte 19 of the file is not UTF-8; save the file"),
    "no parquet": ("parquet", "text,label\n", "cannot be read as Parquet ("),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    ending, content, wording = WRONG[case]
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as raised:
        read_table(path)
    assert str(raised.value).startswith(str(path))
    assert wording in str(raised.value)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError) as raised:
        read_table(tmp_path / f"absent.{ending}")
    assert str(tmp_path / f"absent.{ending}") in str(raised.value)
    assert "check the path" in str(raised.value)


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.json"])
def test_an_unknown_ending_is_named_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"its extension must be one of \.csv, \.tsv, \.jsonl, \.parquet"):
        read_table(tmp_path / name)


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "rows.csv", [("a", "b")]))
    with pytest.raises(DataError, match=r"rows\.csv has no column 'txt'; did you mean 'text'\?"):
        table.column("txt")


@pytest.mark.parametrize(
    ("ending", "separator", "needed"),
    [("csv", ";", "','"), ("csv", "\t", "','"), ("tsv", ",", r"'\t'"), ("tsv", "|", r"'\t'")],
)
def test_another_separator_is_recognized(tmp_path: Path, ending: str, separator: str, needed: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_text(f"text{separator}label\na{separator}b\n")
    with pytest.raises(DataError) as raised:
        read_table(path).column("text")
    assert str(raised.value) == (
        f"{path} has no column 'text'; its first line is {f'text{separator}label'!r}, which has {separator!r} between "
        f"the names where {needed} is needed."
    )


@pytest.mark.parametrize(
    ("cell", "wording"),
    [
        ("", "the text in column 'text' is empty; remove the row or fill it in."),
        (" \t", "the text in column 'text' is empty"),
        (None, "the column 'text' must contain a text, but contains nothing."),
        (3, "the column 'text' must contain a text, but contains 3."),
        (["a"], "the column 'text' must contain a text, but contains [\"a\"]."),
    ],
)
def test_a_cell_that_is_no_text_is_named(tmp_path: Path, cell: Any, wording: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps({"text": cell}) + "\n")
    table = read_table(path)
    with pytest.raises(DataError) as raised:
        table.texts("text")
    assert str(raised.value).startswith(f"{path}, line 2: {wording}")


def test_a_field_that_a_line_lacks_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "label": 1}\n')
    assert read_table(path).columns == {"text": ["a", "b"], "label": [None, 1]}


def test_broken_rows_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("a\tb\n1\t2\n3\n4\t5\t6\n7\t8\n")
    table = read_tsv(path, skip_broken=True)
    assert table.columns == {"a": ["1", "4", "7"], "b": ["2", "5", "8"]}
    assert list(table.places) == [2, 4, 5]


def test_a_file_without_a_header_takes_the_given_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("1\t2\n3\t4")
    table = read_tsv(path, ["a", "b"])
    assert table.columns == {"a": ["1", "3"], "b": ["2", "4"]}
    assert table.where(0) == f"{path}, line 1"


def test_a_blank_line_is_a_row_where_every_row_has_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\none\n\ntwo\n\n\n")
    assert read_table(path).columns == {"text": ["one", "two"]}
    table = read_table(path, keep_blank_lines=True)
    assert table.columns == {"text": ["one", "", "two"]}
    with pytest.raises(DataError, match=r"a\.csv, line 3: the text in column 'text' is empty"):
        table.texts("text")
    path.write_text("text,label\none,x\n\ntwo,y\n")  # no row of two columns
    assert len(read_table(path, keep_blank_lines=True)) == 2
