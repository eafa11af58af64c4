"""Which column of a table of results is its metric, if nobody names it."""

import math
import re
from collections.abc import Sequence

from lora_lightning.errors import FEW, DataError, few_names
from lora_lightning.metrics.direction import higher_is_better
from lora_lightning.studies.results_table import CONFIGURATION, SEED, ResultsTable, to_number

RANKS = ("model.lora.r", "lora_r", "rank", "r")
NOT_TESTED = {"train", "training", "val", "valid", "validation"}  # words in names of metrics


def choose_metric_column(table: ResultsTable, costs: Sequence[str]) -> tuple[str, str]:
    """Finds the one column that can be the metric.

    A column with a metric's name counts even if some of its cells are no numbers, such as "95.1%" or "OOM": another
    column must not be judged in its place. One that is equal for all runs of a configuration may be a setting, such as
    a precision in bits, so that it is not taken beside other numbers.

    Args:
        table: The table.
        costs: Columns of which less is better.

    Returns:
        Its name, and a sentence on columns that may have been meant instead; empty if there are none.

    Raises:
        DataError: If no column, or more than one, can be the metric.
    """
    others = [name for name in table.others if name not in {*costs, *RANKS}]
    known = [name for name in others if higher_is_better(name) is not None and _has_digits(table, name)]
    numeric = [name for name in others if _has_numbers(table, name)]
    candidates = known or numeric
    unknown = [name for name in numeric if name not in known and not table.describes(name)] if known else []
    if len(candidates) == 1 and known and table.describes(candidates[0]):
        unknown = [name for name in numeric if name not in known]
        candidates = [*candidates, *unknown]
    elif len(candidates) == 1 and unknown and _is_not_tested(candidates[0]):
        candidates = [*candidates, *unknown]
    if not candidates:
        msg = f"{table.table.name} has no column with a metric beside the columns configuration and seed; add one"
        raise DataError(msg)
    if len(candidates) > 1:
        msg = f"{table.table.name} has {len(candidates)} columns that could be the metric ({few_names(candidates)}); "
        msg += f"name the one that decides (--metric){_objective(table, candidates)}"
        raise DataError(msg)
    return candidates[0], _note(candidates[0], unknown)


def _objective(table: ResultsTable, candidates: Sequence[str]) -> str:
    """Says where the metric is in the `results.csv` of a study's report, which has all measurements beside it."""
    first, second, *others = table.table.columns
    if (first, second) != (CONFIGURATION, SEED) or not others or others[0] not in candidates or len(candidates) <= FEW:
        return ""
    return f"; in the results.csv of a study's report, it is the third column, here {others[0]}"


def _note(metric: str, unknown: Sequence[str]) -> str:
    if _is_not_tested(metric):
        return f"{metric!r} is judged, which is no test result by its name; name the metric if another column is meant."
    if not unknown:
        return ""
    return f"{metric!r} is judged, the only column with the name of a known metric, and not {few_names(unknown)}."


def _is_not_tested(metric: str) -> bool:
    return not NOT_TESTED.isdisjoint(re.split(r"[^a-z0-9]+|_", metric.lower()))


def _has_digits(table: ResultsTable, column: str) -> bool:
    """Whether a cell has a digit; the name of a loss function has none, and is no result."""
    return any(re.search(r"\d", str(cell)) for cell in table.table.columns[column] if cell is not None)


def _has_numbers(table: ResultsTable, column: str) -> bool:
    """Whether a cell is a number or a percentage, be the others what they may."""
    found = (to_number(str(cell).removesuffix("%")) for cell in table.table.columns[column] if cell is not None)
    return any(number is not None and not math.isnan(number) for number in found)
