"""Reads the rows of anyone's results: one run a row, with its configuration, its seed, its metrics, and test examples.

Every cell is used, or refused, or counted in a note.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lightning.errors import DataError, suggest_names
from lora_lightning.runs.tables import Table, read_table

CONFIGURATION, SEED = "configuration", "seed"
TESTED = "is_tested"  # of the table of all trials that a study writes
EXAMPLE = re.compile(r"example[ _.:-]?\d.*|example_.+", re.IGNORECASE | re.DOTALL)
LARGEST_NUMBER = 1e100  # whose square is still a number
MISSING = {"", "na", "n/a", "nan", "none", "null", "-"}
TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class ResultsTable:
    """A table with one run a row.

    Attributes:
        table: All cells, with names of columns and texts without surrounding spaces.
        configurations: Name of each row's configuration.
        seeds: Seed of each row.
        examples: Names of the columns with one test example each.
    """

    table: Table
    configurations: Sequence[str]
    seeds: Sequence[int]
    examples: Sequence[str]

    @property
    def others(self) -> list[str]:
        """Columns other than configuration, seed and test examples."""
        used = {CONFIGURATION, SEED, *self.examples}
        return [name for name in self.table.columns if name not in used]

    def run_of(self, row: int) -> str:
        """Names a row's run, such as `'r = 8' with seed 3`."""
        return f"{self.configurations[row]!r} with seed {self.seeds[row]}"

    def numbers(self, column: str) -> list[float]:
        """Reads a column of numbers.

        Args:
            column: Its name.

        Returns:
            A float per row; NaN for an empty cell and for a number that is not finite.

        Raises:
            DataError: If there is no such column, or a cell is no number, or one above 1e100.
        """
        cells = self.table.column(column)
        found = [to_number(cell) for cell in cells]
        for row, number in enumerate(found):
            if number is None:
                msg = f"{self.table.where(row)}: {column!r} must be a number, but is {str(cells[row])[:80]!r}; "
                raise DataError(msg + _how_to_write(str(cells[row]).strip()))
            if LARGEST_NUMBER < abs(number) < math.inf:
                msg = f"{self.table.where(row)}: {column!r} is {number:g}, and numbers above {LARGEST_NUMBER:g} cannot "
                msg += "be compared; give it in a larger unit, or leave the cell of a failed run empty"
                raise DataError(msg)
        return [math.nan if number is None or not math.isfinite(number) else number for number in found]

    def is_numeric(self, column: str) -> bool:
        """Whether a column has a number in some row, and nothing else in the others."""
        found = [to_number(cell) for cell in self.table.columns[column]]
        return None not in found and any(number is not None and not math.isnan(number) for number in found)

    def describes(self, column: str) -> bool:
        """Whether all runs of a configuration have the same cell in a column."""
        pairs = set(zip(self.configurations, map(str, self.table.columns[column]), strict=True))
        return len(pairs) == len(set(self.configurations))


def read_results_table(source: Path | str | Mapping[str, Sequence[Any]]) -> ResultsTable:
    """Reads a table of results.

    Args:
        source: A CSV, TSV, JSON lines or Parquet file, or columns by name.

    Returns:
        The table.

    Raises:
        DataError: If it cannot be read, a column is missing, a row has no configuration or seed, two rows are of the
            same configuration and seed, or a row is of a study's trial that was not tested.
    """
    if isinstance(source, Mapping):
        columns = {str(name): list(cells) for name, cells in source.items()}
        sizes = {len(cells) for cells in columns.values()}
        if len(sizes) != 1 or 0 in sizes:
            msg = "the table must have at least one row, and columns of equal length"
            raise DataError(msg)
        table = Table("the table", columns, "row", range(1, sizes.pop() + 1))
    else:
        table = read_table(Path(source))
    table = _without_surrounding_spaces(table)
    configurations = _configurations(table)
    seeds = _seeds(table)
    examples = [name for name in table.columns if EXAMPLE.fullmatch(name)]
    found = ResultsTable(table, configurations, seeds, examples)
    _check_tested(table)
    _check_duplicates(found)
    return found


def to_number(cell: object) -> float | None:
    """Converts a cell into a number.

    Args:
        cell: A text, a number or nothing.

    Returns:
        The number; NaN for an empty cell; `None` if the cell is something else.
    """
    text = "" if cell is None else str(cell).strip().lower()
    if text in MISSING:
        return math.nan
    if text in TRUTH:
        return TRUTH[text]
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _how_to_write(cell: str) -> str:
    """How a number is written that a person would read in a cell; otherwise what the cell of a failed run should be."""
    if to_number(cell.removesuffix("%")) is not None:
        return f"write it without %, as {cell.removesuffix('%').strip()}"
    if re.fullmatch(r"[+-]?\d+,\d+", cell):  # 0,951 or 2,359
        decimal, thousands = cell.replace(",", "."), cell.replace(",", "")
        with_point = f"write it with a decimal point, as {decimal}"
        is_both = re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell)
        return f"{with_point}, or without a separator of thousands, as {thousands}" if is_both else with_point
    if re.fullmatch(r"[+-]?\d{1,3}([,' ]\d{3})+(\.\d*)?", cell):
        return f"write it without separators of thousands, as {re.sub('[^0-9.+-]', '', cell)}"
    return "leave the cell of a run without a result empty"


def _without_surrounding_spaces(table: Table) -> Table:
    names = [name.strip() for name in table.columns]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        msg = f"{table.name}: the column {repeated[0]!r} occurs twice; every column needs a name of its own"
        raise DataError(msg)
    if "" in names:
        cells = next(cells for name, cells in table.columns.items() if not name.strip())
        if [str(cell) for cell in cells] != [str(row) for row in range(len(cells))]:  # not an index that pandas wrote
            msg = f"{table.name}: column {names.index('') + 1} has no name; give it one, or remove it"
            raise DataError(msg)
    stripped = {
        name: [cell.strip() if isinstance(cell, str) else cell for cell in cells]
        for name, cells in zip(names, table.columns.values(), strict=True)
        if name
    }
    return Table(table.name, stripped, table.unit, table.places)


def _configurations(table: Table) -> list[str]:
    names = ["" if cell is None else str(cell) for cell in _needed_column(table, CONFIGURATION)]
    if "" in names:
        msg = f"{table.where(names.index(''))}: the configuration has no name; fill it in"
        raise DataError(msg)
    return names


def _seeds(table: Table) -> list[int]:
    seeds = []
    for row, cell in enumerate(_needed_column(table, SEED)):
        number = to_number(cell)
        if number is None or not number.is_integer():
            shown = "empty" if cell is None or cell == "" else repr(str(cell)[:80])
            msg = f"{table.where(row)}: the seed must be a whole number, but is {shown}; runs are paired by their seeds"
            raise DataError(msg)
        seeds.append(_exact_integer(cell, number))
    return seeds


def _exact_integer(cell: object, number: float) -> int:
    try:
        return int(str(cell))
    except ValueError:  # such as "1.0"
        return int(number)


def _needed_column(table: Table, name: str) -> list[Any]:
    if name not in table.columns and len(table.columns) > 1:
        remedy = suggest_names(name, list(table.columns)[:20])
        msg = f"{table.name} has no column {name!r}; a table needs the columns configuration and seed, and a metric: "
        raise DataError(msg + remedy)
    return table.column(name)


def _check_tested(table: Table) -> None:
    """Refuses the table of all trials of a study, some of which only chose a learning rate or a winner."""
    untested = [row for row, cell in enumerate(table.columns.get(TESTED, [])) if to_number(cell) == 0]
    if untested:
        msg = (
            f"{table.where(untested[0])}: {TESTED!r} is {table.columns[TESTED][untested[0]]}: this is the table of all "
        )
        msg += "trials of a study, and this one only helped to choose; give the results.csv of its report instead "
        msg += (
            "(report/results.csv in the study's folder, written by `lora-lightning study report`), or remove such rows"
        )
        raise DataError(msg)


def _check_duplicates(found: ResultsTable) -> None:
    first: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(found.configurations, found.seeds, strict=True)):
        if key in first:
            msg = f"{found.table.where(row)}: {found.run_of(row)} is already in {found.table.unit} "
            msg += f"{found.table.places[first[key]]}; give one row per configuration and seed, and test examples in "
            msg += "columns of their own, example_1, example_2, ..."
            raise DataError(msg)
        first[key] = row
