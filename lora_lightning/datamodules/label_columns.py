"""Labels as they stand in a table, checked and turned into what a model learns."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lora_lightning.datamodules.tables import Table
from lora_lightning.errors import DataError, suggest_names


def class_labels(table: Table, column: str) -> list[str]:
    """One label a row.

    Args:
        table: The rows.
        column: Of the labels: words, integers or booleans.

    Returns:
        The label of each row as a word.

    Raises:
        DataError: If a row has no label.
    """
    return [_word(table, column, row, cell) for row, cell in enumerate(table.column(column))]


def label_sets(table: Table, column: str, separator: str) -> list[list[str]]:
    """Any number of labels a row.

    Args:
        table: The rows.
        column: Of the labels: lists, or texts in which `separator` stands between labels.
        separator: Not looked for in lists.

    Returns:
        The labels of each row, maybe none.

    Raises:
        DataError: If a cell is neither a list nor a text.
    """
    rows = []
    for row, cell in enumerate(table.column(column)):
        parts = [part for part in cell.split(separator) if part.strip()] if isinstance(cell, str) else cell
        if not isinstance(parts, list):
            found = "nothing" if cell is None else repr(cell)[:80]
            msg = (
                f"{table.where(row)}: the column {column!r} must hold a list of labels, or a text with {separator!r} "
                f"between them, but holds {found}."
            )
            raise DataError(msg)
        rows.append([_word(table, column, row, part) for part in parts])
    return rows


def numbers(table: Table, column: str) -> list[float]:
    """One number a row.

    Args:
        table: The rows.
        column: Of the numbers.

    Returns:
        Finite numbers.

    Raises:
        DataError: If a cell is none.
    """
    values = []
    for row, cell in enumerate(table.column(column)):
        try:
            value = math.nan if isinstance(cell, bool) else float(cell)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            found = "nothing" if cell is None else repr(cell)[:80]
            msg = f"{table.where(row)}: the column {column!r} must hold a finite number, but holds {found}."
            raise DataError(msg)
        values.append(value)
    return values


def class_indices(table: Table, column: str, rows: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    """Places of labels among the names.

    Args:
        table: For messages.
        column: For messages.
        rows: The labels of each row.
        names: Every label there is.

    Returns:
        Indices into `names`, by row.

    Raises:
        DataError: If a label is not among the names.
    """
    places = {name: number for number, name in enumerate(names)}
    indices = []
    for row, labels in enumerate(rows):
        for label in labels:
            if label not in places:
                msg = (
                    f"{table.where(row)}: the label {label!r} in column {column!r} is none of the {len(names)} known "
                    f"ones; {suggest_names(label, names)}"
                )
                raise DataError(msg)
        indices.append([places[label] for label in labels])
    return indices


def sorted_names(labels: Iterable[str]) -> list[str]:
    """Every label once: integers by value, anything else in alphabetical order.

    Args:
        labels: Labels, repeated at will.

    Returns:
        The names, in the order of their class indices.
    """
    names = set(labels)
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # 1 and 01 are two labels
    return sorted(names)


def _word(table: Table, column: str, row: int, cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # a column with a gap holds floating numbers in many tools
    if isinstance(cell, str | int) and str(cell).strip():
        return str(cell).strip()
    found = "is empty" if cell is None or isinstance(cell, str) else f"holds {cell!r}"
    msg = f"{table.where(row)}: the label in column {column!r} {found}; every row needs a word or an integer."
    raise DataError(msg)
