"""Pictures of the comparison, in the style of this project's figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lightning.figures.study import BLUE, FONT, GREEN, INK, ORANGE, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Mapping[str, Mapping[str, Any]]


def ratio_figure(rows: Rows) -> "Figure":
    """Draws ratios so that better is always to the right: those of times are inverted.

    Args:
        rows: With `ratio`, `goal` and `higher_is_better`.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure(height_of(rows))
    for place, row in enumerate(rows.values()):
        goal = row["goal"]
        median, low, high = better_to_the_right(row["ratio"], higher_is_better=row["higher_is_better"])
        color = BLUE if goal is None else GREEN if median >= as_gain(goal, row) else RED
        axes.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot([median], [place], "o", color=color, markersize=6)
        if goal is not None:
            axes.plot([as_gain(goal, row)], [place], "|", color=INK, markersize=12, markeredgewidth=1.6)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("how many times better than the peer (mark: goal)", fontsize=FONT)
    name_rows(axes, list(rows))
    return figure


def share_figure(rows: Rows) -> "Figure":
    """Draws shares of the limit as bars.

    Args:
        rows: With `share` and `share_goal`.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure(height_of(rows))
    for place, row in enumerate(rows.values()):
        share = row["share"]
        axes.barh(place, 100 * share["median"], color=BLUE, height=0.6)
        axes.plot([100 * share["low"], 100 * share["high"]], [place, place], color=INK, linewidth=1.2)
        if row["share_goal"] is not None:
            axes.plot([100 * row["share_goal"]], [place], "|", color=RED, markersize=14, markeredgewidth=2)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the rate of dense products (red: goal)", fontsize=FONT)
    name_rows(axes, list(rows))
    return figure


def pair_figure(ours: Mapping[str, float], peers: Mapping[str, float], unit: str) -> "Figure":
    """Draws an amount of both sides as pairs of bars.

    Args:
        ours: By row.
        peers: The same of the peer.
        unit: Of the amount.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure(height_of(ours) * 1.2)
    for offset, values, color, label in ((-0.2, ours, BLUE, "ours"), (0.2, peers, ORANGE, "peer")):
        places = [place + offset for place in range(len(values))]
        axes.barh(places, list(values.values()), height=0.38, color=color, label=label)
    axes.set_xlabel(unit, fontsize=FONT)
    name_rows(axes, list(ours))
    show_names(axes)
    return figure


def load_figure(loads: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draws what others did with the machine.

    Args:
        loads: `foreign_cpus` and `steal_share` by row.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure(height_of(loads) * 1.2)
    values = {"foreign CPUs": ("foreign_cpus", -0.2, BLUE), "steal, share of all CPUs": ("steal_share", 0.2, ORANGE)}
    for label, (name, offset, color) in values.items():
        places = [place + offset for place in range(len(loads))]
        axes.barh(places, [load[name] for load in loads.values()], height=0.38, color=color, label=label)
    axes.set_xlim(left=0)
    name_rows(axes, list(loads))
    show_names(axes)
    return figure


def better_to_the_right(ratio: Mapping[str, float], *, higher_is_better: bool) -> tuple[float, float, float]:
    """Median, low and high end of a ratio, inverted where small ones are good."""
    median, low, high = (ratio[name] for name in ("median", "low", "high"))
    return (median, low, high) if higher_is_better else (1 / median, 1 / high, 1 / low)


def as_gain(goal: float, row: Mapping[str, Any]) -> float:
    """The goal of a ratio, inverted where small ones are good."""
    return goal if row["higher_is_better"] else 1 / goal


def height_of(rows: Mapping[str, Any]) -> float:
    """Inches for so many rows."""
    return 1.1 + 0.27 * len(rows)


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Writes the names of the rows beside them, the first one at the top."""
    axes.set_yticks(range(len(names)), names, fontsize=FONT - 1)
    axes.set_ylim(len(names) - 0.4, -0.6)


def show_names(axes: "Axes") -> None:
    """Adds a legend above the axes."""
    axes.legend(fontsize=FONT - 1, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, labelcolor=INK)
