"""Labels of a table, checked and turned into class indices."""

from collections.abc import Iterable, Sequence
from typing import Any

from lora_lightning.datamodules.label_lists import is_list_in_text, is_part_of_list, read_label_list
from lora_lightning.errors import DataError, suggest_names
from lora_lightning.runs.tables import Table

SHOWN = 80  # characters of a cell in a message


def class_labels(table: Table, column: str) -> list[str]:
    """Reads one label from each row.

    Args:
        table: The rows.
        column: Name of the column of labels: words, integers or booleans.

    Returns:
        The label of each row as a word.

    Raises:
        DataError: If a row has no label, or a list of labels.
    """
    cells = table.column(column)
    for row, cell in enumerate(cells):
        if isinstance(cell, str) and is_list_in_text(cell):
            msg = (
                f"{table.where(row)}: the label {cell[:SHOWN]!r} in column {column!r} looks like a list written as "
                "text; for several labels per text set data.problem_type: multi_label_classification."
            )
            raise DataError(msg)
    return [_label(table, column, row, cell) for row, cell in enumerate(cells)]


def label_sets(table: Table, column: str, separator: str) -> list[list[str]]:
    """Reads any number of labels from each row.

    Args:
        table: The rows.
        column: Name of the column of labels: lists, lists written as text, or text with `separator` between labels.
        separator: Ignored in lists.

    Returns:
        The labels of each row, possibly none.

    Raises:
        DataError: If a cell is neither a list nor text, or looks like a list but cannot be read as one, or the lists
            are vectors of 0 and 1.
    """
    rows = []
    for row, cell in enumerate(table.column(column)):
        parts = _parts(table, column, row, cell, separator)
        rows.append([_label(table, column, row, part) for part in parts])
        for label in rows[-1]:
            if is_part_of_list(label):
                raise DataError(_unreadable_list(table, column, row, cell, "its brackets or quotes do not match"))
    _check_not_indicators(table, column, rows)
    return rows


def _parts(table: Table, column: str, row: int, cell: Any, separator: str) -> list[Any]:
    """The labels of one cell."""
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str):
        found = "nothing" if cell is None else repr(cell)[:SHOWN]
        msg = (
            f"{table.where(row)}: the column {column!r} must contain a list of labels, or a text with {separator!r} "
            f"between them, but contains {found}."
        )
        raise DataError(msg)
    try:
        listed = read_label_list(cell, separator)
    except ValueError as error:
        raise DataError(_unreadable_list(table, column, row, cell, str(error))) from error
    return [part for part in cell.split(separator) if part.strip()] if listed is None else listed


def _unreadable_list(table: Table, column: str, row: int, cell: Any, why: str) -> str:
    return (
        f"{table.where(row)}: {str(cell)[:SHOWN]!r} in column {column!r} looks like a list written as text, but cannot "
        f'be read as one ({why}); write a JSON list, such as ["a", "b"], or the labels with '
        "data.label_separator between them."
    )


def _check_not_indicators(table: Table, column: str, rows: Sequence[Sequence[str]]) -> None:
    """Refuses vectors with a 0 or a 1 for each class: read as lists of labels, they would mean two classes."""
    sizes = {len(labels) for labels in rows}
    repeats = any(len(set(labels)) < len(labels) for labels in rows)
    if len(sizes) == 1 and repeats and {label for labels in rows for label in labels} <= {"0", "1", "True", "False"}:
        msg = (
            f"{table.name}: every row of column {column!r} holds {sizes.pop()} times 0 or 1, which looks like one "
            "number per class; write the names of the labels that apply instead."
        )
        raise DataError(msg)


def class_indices(table: Table, column: str, rows: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    """Finds the class index of each label.

    Args:
        table: For messages.
        column: For messages.
        rows: The labels of each row.
        names: All labels, in the order of their indices.

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
                    f"{table.where(row)}: the label {label!r} in column {column!r} is not one of the {len(names)} "
                    f"known labels; {suggest_names(label, names)}"
                )
                raise DataError(msg)
        indices.append([places[label] for label in labels])
    return indices


def sorted_names(labels: Iterable[str]) -> list[str]:
    """Sorts the different labels: integers by value, anything else alphabetically.

    Args:
        labels: Labels, with repetitions.

    Returns:
        The names, in the order of their class indices.
    """
    names = set(labels)
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # 1 and 01 are two labels
    return sorted(names)


def _label(table: Table, column: str, row: int, cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # many tools turn a column of integers with a gap into floating point numbers
    if isinstance(cell, str | int) and str(cell).strip():
        return str(cell).strip()
    found = "is empty" if cell is None or isinstance(cell, str) else f"holds {cell!r}"
    msg = f"{table.where(row)}: the label in column {column!r} {found}; every row needs a word or an integer."
    raise DataError(msg)
