"""How the metric of a table is understood: its direction, its scale and the margin, from its name and its values."""

import math
import re
from collections.abc import Sequence
from enum import StrEnum

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.direction import higher_is_better, is_logarithm, metric_range
from lora_lightning.statistics.study_results import MARGIN_IN_PERCENT, MARGIN_IN_POINTS, Metric, Scale

BOUNDED = {(0.0, 1.0), (-1.0, 1.0)}  # ranges of metrics whose margin is in points
PERPLEXITIES = (1.0, math.inf)
LARGEST_LOGARITHM = 700.0  # of which the exponential is still a number
RARE_ERROR = 0.1  # a share of errors above this may also be a percentage below 1


class TableScale(StrEnum):
    """The scale of the metric in a table.

    Attributes:
        FRACTION: Such as accuracy 0.945; the margin is in points.
        PERCENT: Such as accuracy 94.5; the margin is in points.
        PERPLEXITY: Such as perplexity 20.1, compared by its logarithm; the margin is in percent.
        LOG: A natural logarithm, such as the log perplexity 3.0; the margin is in percent of the quantity itself.
        PLAIN: Any other number; the margin is in its unit.
    """

    FRACTION = "fraction"
    PERCENT = "percent"
    PERPLEXITY = "perplexity"
    LOG = "log"
    PLAIN = "plain"

    @property
    def stored(self) -> Scale:
        """The scale of the values that are analyzed."""
        return {
            TableScale.FRACTION: Scale.FRACTION,
            TableScale.PERCENT: Scale.FRACTION,
            TableScale.PERPLEXITY: Scale.LOG,
            TableScale.LOG: Scale.LOG,
            TableScale.PLAIN: Scale.PLAIN,
        }[self]

    def stored_value(self, value: float) -> float:
        """Converts a value of the table into the one that is analyzed.

        Args:
            value: Above 0 if the scale is `PERPLEXITY`.

        Returns:
            A fraction, a natural logarithm, or the value itself.
        """
        if self is TableScale.PERPLEXITY:
            return math.log(value)
        return value / 100 if self is TableScale.PERCENT else value


def choose_scale(name: str, values: Sequence[float], scale: str | None = None) -> TableScale:
    """Chooses the scale of a metric.

    Args:
        name: The metric.
        values: All its values, finite.
        scale: A `TableScale` that the user gave; `None` to choose by name and values.

    Returns:
        The scale.

    Raises:
        ConfigurationError: If the values do not fit the scale, or fit two.
    """
    if scale is not None and scale not in list(TableScale):
        msg = f"the scale {scale!r} is unknown; the scales are {', '.join(TableScale)}"
        raise ConfigurationError(msg)
    chosen = TableScale(scale) if scale is not None else _scale_by_name(name, values)
    low, high = min(values, default=math.nan), max(values, default=math.nan)
    wrong = {
        TableScale.FRACTION: max(abs(low), high) > 1,
        TableScale.PERCENT: max(abs(low), high) > 100,  # noqa: PLR2004
        TableScale.PERPLEXITY: low <= 0,
        TableScale.LOG: max(abs(low), high) > LARGEST_LOGARITHM,
        TableScale.PLAIN: False,
    }
    if wrong[chosen]:
        msg = f"the values of {name!r} range from {low:g} to {high:g}, which is not possible for the scale {chosen!s}; "
        msg += f"correct them, or give another scale ({', '.join(TableScale)})"
        raise ConfigurationError(msg)
    return chosen


def choose_metric(name: str, scale: TableScale, direction: str | None = None, margin: float | None = None) -> Metric:
    """Builds the metric that decides.

    Args:
        name: Its name.
        scale: How its values are stored in the table.
        direction: `"higher"` or `"lower"` is better; `None` if the name says it.
        margin: The largest loss of quality that does not matter; `None` for 0.5 points or 1 percent.

    Returns:
        The metric.

    Raises:
        ConfigurationError: If the direction is unknown or contradicts the name, or the margin is missing or not above
            0.
    """
    if direction not in {None, "higher", "lower"}:
        msg = f"the direction {direction!r} is unknown; it must be higher or lower"
        raise ConfigurationError(msg)
    known = higher_is_better(name)
    higher = known if direction is None else direction == "higher"
    if higher is None:
        msg = f"it is not known whether a larger {name!r} is better; add the direction, higher or lower"
        raise ConfigurationError(msg)
    if known is not None and higher is not known:
        better = "larger" if known else "smaller"
        msg = (
            f"the direction {direction!r} contradicts {name!r}, of which {better} values are better; rename the column "
        )
        msg += "if it holds something else"
        raise ConfigurationError(msg)
    defaults = {Scale.FRACTION: MARGIN_IN_POINTS, Scale.LOG: MARGIN_IN_PERCENT}
    if margin is None and scale.stored not in defaults:
        msg = f"{name!r} has no usual margin; add the largest difference in its unit that does not matter as the margin"
        raise ConfigurationError(msg)
    metric = Metric(name, defaults[scale.stored] if margin is None else margin, higher, scale.stored)
    if not 0 < metric.margin < math.inf:
        msg = f"the margin is {metric.margin:g}, and must be above 0: without one no finite study proves anything"
        raise ConfigurationError(msg)
    return metric


def doubtful_scale_note(name: str, values: Sequence[float], scale: TableScale, *, is_given: bool) -> str:
    """Says how values were read that may be fractions or percentages below 1, such as a calibration error of 0.8.

    Args:
        name: The metric.
        values: All its values, finite.
        scale: The scale of the values.
        is_given: Whether the user gave the scale, instead of a choice by name and values.

    Returns:
        A sentence; empty if nothing is doubtful: the values can hardly be percentages, or are given as what they
        look like.
    """
    largest = max(values, default=0.0)
    if is_given:
        is_small = scale is TableScale.PERCENT and max(map(abs, values), default=math.inf) <= 1
        if not is_small or higher_is_better(name) is not True:  # an error rate may well be below 1 %
            return ""
        return (
            f"The values of {name} are read as percent, as given, so that {largest:g} is {largest:g} % and not "
            f"{100 * largest:.4g} %; if they are fractions, leave the scale out: the margin is in points."
        )
    if scale is not TableScale.FRACTION or higher_is_better(name) is not False or largest <= RARE_ERROR:
        return ""
    return (
        f"The values of {name} are read as fractions, so that {largest:g} is {100 * largest:.4g} %; if they are "
        "percent, give the scale percent."
    )


def _scale_by_name(name: str, values: Sequence[float]) -> TableScale:
    least, greatest = metric_range(name)
    if (least, greatest) == PERPLEXITIES:
        return _scale_of_perplexity(name)
    largest = max(map(abs, values), default=math.inf)
    if (least, greatest) == (-math.inf, math.inf) and largest <= 1:
        msg = (
            f"it is not known whether the values of {name!r}, which lie between -1 and 1, are fractions, whose margin "
            "is in points, or plain numbers, whose margin is in their own unit; give the scale fraction or plain"
        )
        raise ConfigurationError(msg)
    if (least, greatest) not in BOUNDED:
        return TableScale.PLAIN
    if not values or largest <= 1:
        return TableScale.FRACTION
    if doubtful := [value for value in values if 0 < abs(value) <= 1]:
        msg = (
            f"{name!r} has values above 1, which look like percent, and {doubtful[0]:g}, which looks like a fraction; "
        )
        msg += "correct the table, or give the scale percent"
        raise ConfigurationError(msg)
    return TableScale.PERCENT


def _scale_of_perplexity(name: str) -> TableScale:
    if found := re.search(r"(?<![a-z0-9])log_?(2|10)(?![0-9])", name.lower()):
        msg = f"{name!r} is a logarithm to the base {found[1]}, but natural logarithms are needed; multiply its values "
        msg += f"by {math.log(int(found[1])):.6g} and rename it to 'log_perplexity'"
        raise ConfigurationError(msg)
    return TableScale.LOG if is_logarithm(name) else TableScale.PERPLEXITY
