"""Numbers in a table: targets of a regression, or GLUE's row numbers."""

import math
import re
from typing import Any

import numpy as np

from lora_lightning.errors import DataError
from lora_lightning.runs.tables import Table

PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
GROUPED = re.compile(r"[+-]?\d{1,3}((,\d{3})+\.\d+|(,\d{3}){2,}\.?)([eE][+-]?\d+)?", re.ASCII)
MINUS_SIGN = "\N{MINUS SIGN}"
LARGEST = float(np.finfo(np.float32).max)  # the dtype of targets


def finite_numbers(table: Table, column: str) -> list[float]:
    """Reads one number from each row.

    A text may have spaces around it, an exponent, and commas between thousands where nothing else can be meant:
    `1e-3`, ` 3.5 `, `1,234.5`.

    Args:
        table: The rows.
        column: Name of the column.

    Returns:
        Numbers that float32 can hold.

    Raises:
        DataError: If a cell is empty, no number, ambiguous (`1,5`), not finite or too large.
    """
    values = []
    for row, cell in enumerate(table.column(column)):
        value = _number(cell)
        if not math.isfinite(value) or abs(value) > LARGEST:
            found = "nothing" if cell is None else repr(cell)[:80]
            remedy = _remedy(cell, value)
            msg = (
                f"{table.where(row)}: the column {column!r} must contain a finite number, but contains {found}{remedy}."
            )
            raise DataError(msg)
        values.append(value)
    return values


def _number(cell: Any) -> float:
    """The number in a cell; NaN if there is none."""
    if isinstance(cell, str):
        text = cell.strip().replace(MINUS_SIGN, "-")
        if GROUPED.fullmatch(text):
            return float(text.replace(",", ""))
        return float(text) if PLAIN.fullmatch(text) else math.nan
    try:
        return math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        return math.nan
    except OverflowError:  # an integer of JSON
        return math.inf


def _remedy(cell: Any, value: float) -> str:
    has_digits = isinstance(cell, str) and any(map(str.isdigit, cell))
    if has_digits and "," in cell:
        return ", whose comma may separate decimals or thousands; write it with a decimal point and without commas"
    if has_digits and "_" in cell:
        return "; write it without underscores"
    if (cell != value and math.isinf(value)) or LARGEST < abs(value) < math.inf:
        return f", which exceeds the largest float32, {LARGEST:.3g}"
    return ""
