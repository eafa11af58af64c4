"""Reads one number per test example, which lets two configurations be compared on the same examples."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_lightning.analysis.metric_scale import TableScale
from lora_lightning.errors import DataError
from lora_lightning.statistics.pairing import is_mean_of
from lora_lightning.studies.results_table import ResultsTable

SHARE_OF_MARGIN = 0.1  # by which a metric may differ from the mean of its examples, so that verdicts are about both
ROUNDING = 1e-9  # of the margin


def read_outcomes(
    table: ResultsTable, values: Sequence[float], scale: TableScale, stored_margin: float
) -> dict[int, NDArray[np.float64]]:
    """Reads the test examples of every run.

    Args:
        table: The table.
        values: The metric of each row; NaN if the run has none.
        scale: How the metric is stored.
        stored_margin: In the unit of the values that are analyzed.

    Returns:
        By row, shape (examples,), float64, whose mean is the metric as it is analyzed; without runs that have no metric
        or no test examples.

    Raises:
        DataError: If a run has some examples only, or their mean is not the metric, up to a tenth of the margin.
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
    _check_means(table, {row: scale.stored_value(values[row]) for row in found}, found, stored_margin)
    return found


def _check_means(
    table: ResultsTable, values: Mapping[int, float], outcomes: Mapping[int, NDArray[np.float64]], stored_margin: float
) -> None:
    most = stored_margin * (SHARE_OF_MARGIN + ROUNDING)
    for row, found in outcomes.items():
        value, mean = values[row], float(found.mean())
        if abs(mean - value) > most or not is_mean_of(value, found):
            msg = (
                f"{table.table.where(row)}: the mean of the {len(found):,} test examples is {mean:.6g}, but the metric "
            )
            msg += f"is {value:.6g}; give it with more digits if it is rounded, or one number per test example "
            msg += (
                "whose mean is the metric (for a perplexity its logarithm), or remove these columns to compare seeds "
            )
            msg += "alone"
            raise DataError(msg)
