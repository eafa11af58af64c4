"""Reads one number per test example, which lets two configurations be compared on the same examples."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_lightning.analysis.metric_outcomes import TOLERANCE
from lora_lightning.analysis.metric_scale import TableScale
from lora_lightning.errors import DataError
from lora_lightning.studies.results_table import ResultsTable


def read_outcomes(table: ResultsTable, values: Sequence[float], scale: TableScale) -> dict[int, NDArray[np.float64]]:
    """Reads the test examples of every run.

    Args:
        table: The table.
        values: The metric of each row; NaN if the run has none.
        scale: How the metric is stored.

    Returns:
        By row, shape (examples,), float64, whose mean is the metric as it is analyzed; without runs that have no metric
        or no test examples.

    Raises:
        DataError: If a run has some examples only, or their mean is not the metric.
    """
    if not table.examples:
        return {}
    cells = np.array([table.numbers(name) for name in table.examples], dtype=np.float64).T
    found = {}
    for row, outcomes in enumerate(cells):
        missing = np.isnan(outcomes)
        if missing.all() or math.isnan(values[row]):
            continue
        if missing.any():
            name = table.examples[int(missing.argmax())]
            msg = f"{table.table.where(row)}: {name!r} has no finite number; a run needs all test examples, or none"
            raise DataError(msg)
        found[row] = outcomes
    if scale is TableScale.PERCENT and any(outcomes.max() > 1 for outcomes in found.values()):
        found = {row: outcomes / 100 for row, outcomes in found.items()}
    _check_means(table, {row: scale.stored_value(values[row]) for row in found}, found)
    return found


def _check_means(table: ResultsTable, values: Mapping[int, float], outcomes: Mapping[int, NDArray[np.float64]]) -> None:
    for row, found in outcomes.items():
        value, mean = values[row], float(found.mean())
        if abs(mean - value) > TOLERANCE * max(1.0, abs(value)):
            msg = (
                f"{table.table.where(row)}: the mean of the {len(found):,} test examples is {mean:.4g}, but the metric "
            )
            msg += f"is {value:.4g}; give one number per test example whose mean is the metric (for a perplexity its "
            msg += "logarithm), or remove these columns to compare seeds alone"
            raise DataError(msg)
