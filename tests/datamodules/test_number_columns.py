"""A number is read as it was meant, or refused."""

import math
from typing import Any

import pytest

from lora_lightning.datamodules.number_columns import finite_numbers
from lora_lightning.errors import DataError
from lora_lightning.runs.tables import Table


def table_of(*cells: Any) -> Table:
    return Table("rows.csv", {"score": list(cells)}, "line", range(2, len(cells) + 2))


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1e-3", 0.001),
        (" 3.5 ", 3.5),
        ("\u00a03.5\t", 3.5),
        ("1,234.5", 1234.5),
        ("-1,234,567", -1234567),
        ("1,234,567.", 1234567),
        ("+.5", 0.5),
        ("5.", 5),
        ("1.5E+2", 150),
        ("\u22122", -2),
        ("-0", 0),
        (7, 7),
        (2.5, 2.5),
        ("3.4e38", 3.4e38),
    ],
)
def test_numbers_in_every_common_form(cell: Any, value: float) -> None:
    assert finite_numbers(table_of(cell), "score") == [value]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("1,5", "'1,5', whose comma may separate decimals or thousands; write it with a decimal point"),
        ("1,234", "'1,234', whose comma may"),
        ("1.234,5", "'1.234,5', whose comma may"),
        ("1,23.4", "'1,23.4', whose comma may"),
        ("1,2345.6", "'1,2345.6', whose comma may"),
        ("1234,567.8", "'1234,567.8', whose comma may"),
        ("1_000", "'1_000'; write it without underscores."),
        ("1.234.567", "'1.234.567'."),
        ("1 234", "'1 234'."),
        ("0x10", "'0x10'."),
        ("50%", "'50%'."),
        ("inf", "'inf'."),
        ("-Infinity", "'-Infinity'."),
        ("nan", "'nan'."),
        ("", "''."),
        (math.inf, "inf."),
        (math.nan, "nan."),
        ("1e39", "'1e39', which exceeds the largest float32, 3.4e+38."),
        ("1e999", "'1e999', which exceeds the largest float32, 3.4e+38."),
        (-(10**400), "-1000"),
        (True, "True."),
        (None, "nothing."),
        ([1], "[1]."),
    ],
    ids=str,
)
def test_anything_else_is_refused_with_its_place(cell: Any, found: str) -> None:
    with pytest.raises(DataError) as raised:
        finite_numbers(table_of("1", cell), "score")
    start = "rows.csv, line 3: the column 'score' must contain a finite number, but contains "
    assert str(raised.value).startswith(start + found)
