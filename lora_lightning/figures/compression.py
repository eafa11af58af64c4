"""The figure of a compression: quality against the rank that an adapter is truncated to."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lora_lightning.figures.study import (
    BLUE,
    COLORS,
    FONT,
    INK,
    ORANGE,
    RED,
    axis_label,
    new_figure,
    separate_ticks,
    show_legend,
)
from lora_lightning.statistics import Interval, Metric, Verdict
from lora_lightning.statistics.verdicts import shown_margin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 3.8  # inches; two rows of a legend are above the axes


class RankPoint(NamedTuple):
    """One rank in the figure.

    Attributes:
        rank: That was kept in each layer, or on average over the parameters.
        value: The metric, as it is stored.
        difference: From the full adapter, larger is better; without ends if there is no interval.
        verdict: `None` for a rival.
    """

    rank: float
    value: float
    difference: Interval
    verdict: Verdict | None


def compression_figure(
    metric: Metric, full: RankPoint, points: Sequence[RankPoint], rivals: Sequence[RankPoint], chosen: int
) -> "Figure":
    """Draws the metric against the rank, with the interval of the difference from the full adapter, and the margin.

    Args:
        metric: What decides.
        full: The full adapter.
        points: The candidates.
        rivals: Other choices of ranks, at the mean rank of their size.
        chosen: The rank that was chosen.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure(HEIGHT)
    sign = 1.0 if metric.higher_is_better else -1.0
    shown = [*points, full]
    ranks = [point.rank for point in shown]
    axes.axhline(metric.shown_value(full.value), color=INK, linewidth=0.8, label="full adapter")
    limit = metric.shown_value(full.value - sign * metric.stored_margin)
    axes.axhline(limit, color=RED, linewidth=1, linestyle="--", label=f"margin {shown_margin(metric)}")
    axes.axvline(chosen, color=BLUE, linewidth=6, alpha=0.15, label=f"chosen: {chosen}")
    ordered = sorted(shown)
    axes.plot([p.rank for p in ordered], [metric.shown_value(p.value) for p in ordered], color=BLUE, linewidth=1)
    for point in points:
        if math.isfinite(point.difference.low):
            ends = [
                metric.shown_value(full.value + sign * end) for end in (point.difference.low, point.difference.high)
            ]
            axes.plot([point.rank] * 2, ends, color=COLORS[point.verdict or Verdict.UNDECIDED][0], linewidth=1.4)
    for verdict in dict.fromkeys(point.verdict for point in points if point.verdict is not None):
        color, marker = COLORS[verdict]
        of_verdict = [point for point in points if point.verdict is verdict]
        heights = [metric.shown_value(point.value) for point in of_verdict]
        places = [point.rank for point in of_verdict]
        axes.plot(places, heights, marker, color=color, markersize=5, linestyle="none", label=str(verdict))
    if rivals:
        heights = [metric.shown_value(point.value) for point in rivals]
        places = [point.rank for point in rivals]
        axes.plot(places, heights, "+", color=ORANGE, markersize=8, linestyle="none", label="rivals, at their size")
    axes.plot([full.rank], [metric.shown_value(full.value)], "D", color=INK, markersize=5)
    axes.set_xscale("log", base=2)
    ticks = separate_ticks(sorted(set(ranks)))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=FONT)
    axes.minorticks_off()
    axes.set_xlabel("rank k that the adapter is truncated to", fontsize=FONT)
    axes.set_ylabel(f"{axis_label(None, metric)}, validation", fontsize=FONT, parse_math=False)
    show_legend(axes)
    return figure
