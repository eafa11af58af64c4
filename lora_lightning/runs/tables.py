"""Reads tables: CSV, TSV, JSON lines, Parquet. Errors name the file and the row. Imports nothing heavy."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lightning.errors import DataError, suggest_names

SEPARATORS = {".csv": ",", ".tsv": "\t"}
CELL_REMEDIES = {
    ".csv": "a cell with a comma in it must stand in double quotes.",
    ".tsv": "no cell may hold a tab or a line end.",
}
FIELD_LIMIT = 2**31 - 1  # the csv module's own is 128 KiB, less than a long document


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and where each row came from.

    Attributes:
        name: The file, or the hub's data set, for messages.
        columns: Cells by column name; `None` where a row has none.
        unit: What `places` counts: `line` or `row`.
        places: Number of each row, from 1.
    """

    name: str
    columns: dict[str, list[Any]]
    unit: str
    places: Sequence[int]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.places)

    def where(self, row: int) -> str:
        """A row's place, for messages: `train.csv, line 3`.

        Args:
            row: Row number, from 0.
        """
        return f"{self.name}, {self.unit} {self.places[row]}"

    def take(self, rows: Sequence[int]) -> "Table":
        """Returns a table of some of the rows.

        Args:
            rows: Row numbers, from 0.
        """
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return Table(self.name, columns, self.unit, [self.places[row] for row in rows])

    def column(self, name: str) -> list[Any]:
        """The cells of a column.

        Args:
            name: Of the column.

        Returns:
            One a row.

        Raises:
            DataError: If there is no such column.
        """
        if name not in self.columns:
            remedy = _separator_remedy(self.name, list(self.columns)) or suggest_names(name, self.columns)
            msg = f"{self.name} has no column {name!r}; {remedy}"
            raise DataError(msg)
        return self.columns[name]

    def texts(self, name: str, may_be_empty: bool = False) -> list[str]:
        """The texts of a column.

        Args:
            name: Of the column.
            may_be_empty: Whether an empty text is left in.

        Returns:
            One a row, as they stand in the file.

        Raises:
            DataError: If there is no such column, or a cell is no text, or is empty.
        """
        cells = self.column(name)
        for row, cell in enumerate(cells):
            if not isinstance(cell, str):
                found = "nothing" if cell is None else json.dumps(cell, default=str)[:80]
                msg = f"{self.where(row)}: the column {name!r} must contain a text, but contains {found}."
                raise DataError(msg)
            if not cell.strip() and not may_be_empty:
                msg = f"{self.where(row)}: the text in column {name!r} is empty; remove the row or fill it in."
                raise DataError(msg)
        return cells


def read_table(path: Path, *, keep_blank_lines: bool = False) -> Table:
    """Reads a table, by the file's ending.

    A TSV file is read without quoting, so that a quotation mark is one and a cell holds neither tab nor line end;
    a CSV file with the usual double quotes. Both start with the columns' names. In JSON lines each line is an object.

    Args:
        path: Ends in `.csv`, `.tsv`, `.jsonl` or `.parquet`.
        keep_blank_lines: Whether a blank line before the last row of a CSV file with one column is an empty cell, as
            where every row has an answer of its own; otherwise it is no row.

    Returns:
        The table, with at least one row.

    Raises:
        DataError: If the file cannot be read, or a row is malformed.
    """
    ending = path.suffix.lower()
    refuse_folder(path, READERS)
    if ending not in READERS:
        msg = f"{path} cannot be read as a table; its extension must be one of {', '.join(READERS)}."
        raise DataError(msg)
    table = _read_csv(path, keep_blank_lines=True) if ending == ".csv" and keep_blank_lines else READERS[ending](path)
    if not len(table):
        msg = f"{path} has no rows; give a file with at least one."
        raise DataError(msg)
    return table


def refuse_folder(path: Path, endings: Iterable[str]) -> None:
    """Refuses a folder in place of a file.

    Args:
        path: What was given.
        endings: Extensions of the files that are read.

    Raises:
        DataError: If the path is a folder.
    """
    if path.is_dir():
        msg = f"{path} is a folder; give a file that ends in {', '.join(endings)}."
        raise DataError(msg)


def read_tsv(path: Path, names: Sequence[str] | None = None, skip_broken: bool = False) -> Table:
    """Reads tab-separated values without quoting.

    Args:
        path: The file, in UTF-8, with or without a byte order mark.
        names: The columns, where the file does not start with them.
        skip_broken: Leave out rows with too few cells, and further cells of rows with too many, instead of raising.

    Returns:
        The table, maybe without rows.

    Raises:
        DataError: If the file cannot be read, or a row has too few or too many cells.
    """
    lines = ((number, line.split("\t")) for number, line in enumerate(_lines(path), start=1))
    return _from_rows(path, lines, names, skip_broken)


def _read_csv(path: Path, *, keep_blank_lines: bool = False) -> Table:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        blank: list[int] = []  # since the last row
        columns = 0
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                msg = f"{path}, line {start}: {error}; a cell with quotes must be quoted, with its quotes doubled."
                raise DataError(msg) from error
            if not row:
                blank.append(start)
                continue
            yield from ((line, [""]) for line in blank if keep_blank_lines and columns == 1)
            blank, columns = [], columns or len(row)
            yield start, row

    return _from_rows(path, rows(), None)


def _from_rows(
    path: Path, rows: Iterable[tuple[int, list[str]]], names: Sequence[str] | None, skip_broken: bool = False
) -> Table:
    rows = iter(rows)
    if names is None:
        _, names = next(rows, (1, []))
        repeated = [name for number, name in enumerate(names) if name in names[:number]]
        if repeated:
            msg = f"{path}, line 1: the column {repeated[0]!r} occurs twice; every column needs a name of its own."
            raise DataError(msg)
    places: list[int] = []
    kept: list[list[str]] = []
    for number, row in rows:
        if len(row) != len(names):
            if not skip_broken:
                cells = f"{len(row)} column{'s' * (len(row) != 1)}"
                remedy = _separator_remedy(str(path), names) or CELL_REMEDIES.get(path.suffix.lower(), "fix the line.")
                msg = f"{path}, line {number}: {cells} where {len(names)} are needed ({', '.join(names)}); {remedy}"
                raise DataError(msg)
            if len(row) < len(names):
                continue
        places.append(number)
        kept.append(row)
    columns = {name: [row[number] for row in kept] for number, name in enumerate(names)}
    return Table(str(path), columns, "line", places)


def _separator_remedy(name: str, columns: Sequence[str]) -> str | None:
    """What to do about a file whose only column is the names of several with another separator between them."""
    own = SEPARATORS.get(Path(name).suffix.lower())
    found = [mark for mark in (";", "\t", ",", "|") if mark != own and len(columns) == 1 and mark in columns[0]]
    if own is None or not found:
        return None
    return f"its first line is {columns[0]!r}, which has {found[0]!r} between the names where {own!r} is needed."


def _read_json_lines(path: Path) -> Table:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            msg = f"{path}, line {number}: not JSON ({error}); write one object per line."
            raise DataError(msg) from error
        if not isinstance(row, dict):
            msg = f"{path}, line {number}: expected an object, found {line.strip()[:80]}."
            raise DataError(msg)
        check_characters(row, f"{path}, line {number}")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), {name: [row.get(name) for row in rows] for name in names}, "line", range(1, len(rows) + 1))


def _read_parquet(path: Path) -> Table:
    from pyarrow import parquet  # noqa: PLC0415  # half a second that other files do not need

    try:
        content = parquet.read_table(path.expanduser())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        msg = f"{path} cannot be read as Parquet ({reason}); check the path, or write the file again."
        raise DataError(msg) from error
    return Table(str(path), content.to_pydict(), "row", range(1, content.num_rows + 1))


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": read_tsv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _lines(path: Path) -> list[str]:
    """Lines without their ends; empty ones at the end of the file are left out."""
    # Not splitlines(): to it a form feed or U+2028 inside a text ends a line.
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_text(path: Path) -> str:
    """Reads a text file.

    Args:
        path: In UTF-8; a byte order mark is left out.

    Returns:
        Its content, line ends as they are.

    Raises:
        DataError: If it cannot be read or is not UTF-8; names the line.
    """
    try:
        raw = path.expanduser().read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read ({str(error.strerror).lower()}); check the path."
        raise DataError(msg) from error
    return decode_text(raw, str(path))


def parse_json(text: str) -> Any:
    """Parses JSON, in which no object may have two values of one name: Python would silently keep the last.

    Args:
        text: The JSON.

    Returns:
        The value.

    Raises:
        ValueError: If it is not JSON, or a name occurs twice in an object.
        RecursionError: If it is nested too deeply.
    """

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            msg = f"the name {repeated!r} occurs twice in one object"
            raise ValueError(msg)
        return found

    return json.loads(text, object_pairs_hook=to_object)


def check_characters(value: Any, place: str) -> None:
    """Refuses half a character: JSON may escape one half of a UTF-16 pair, which no tokenizer reads and no file holds.

    Args:
        value: From JSON.
        place: What to call it in messages.

    Raises:
        DataError: If a text in it has such a half.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        msg = f"{place}: {half!a} is half of a character, probably of a truncated text; fix or remove the text."
        raise DataError(msg) from error


def decode_text(raw: bytes, name: str) -> str:
    """Decodes the content of a file.

    Args:
        raw: UTF-8; a byte order mark is left out.
        name: What to call the file in messages.

    Returns:
        The text, line ends as they are.

    Raises:
        DataError: If it is not UTF-8; names the line.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        msg = f"{name}, line {line}: byte {error.start} of the file is not UTF-8; save the file in UTF-8."
        raise DataError(msg) from error
