"""Figures of a diagnosis: maps of layers and modules, ranks, memory against quality, spectra, scores and layers."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.figures.allocation import module_grid
from lora_lightning.figures.point_labels import label_points
from lora_lightning.figures.study import (
    BLUE,
    FONT,
    GREY,
    INK,
    ORANGE,
    SERIES,
    WIDTH,
    new_figure,
    separate_ticks,
    series_style,
    show_costs,
    show_legend,
    shown_name,
)
from lora_lightning.statistics.jackknife import Interval

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PRECISION_STYLES = ((BLUE, "o", "-"), (ORANGE, "s", "--"))  # not quantized, quantized
PAIR_STYLES = (*PRECISION_STYLES, (SERIES[2], "^", ":"))  # another precision, another seed, both
PANEL_WIDTH, CELL_HEIGHT, LETTER = 1.7, 0.13, 0.075  # inches
MOST_ROWS, COLORS = 16, 32  # labels of layers; steps of a color scale


def module_maps_figure(
    panels: Mapping[str, Mapping[str, float]], label: str, limits: tuple[float, float] | None = None
) -> "Figure":
    """Draws a number of each module, a row for each layer and a column for each kind of module.

    Args:
        panels: By title: numbers by full dotted name of the module; the same modules in each, at least one.
        label: What the numbers are.
        limits: Ends of the color scale; `None` for those of the numbers.

    Returns:
        A matplotlib figure that belongs to no window; grey where there is no number.
    """
    from matplotlib import colormaps  # noqa: PLC0415  # a second of import, needed only where something is drawn
    from matplotlib.figure import Figure  # noqa: PLC0415

    grids = {title: module_grid(values) for title, values in panels.items()}
    _, rows, kinds = next(iter(grids.values()))
    known = [value for values in panels.values() for value in values.values() if math.isfinite(value)]
    low, high = limits or (min(known, default=0.0), max(known, default=1.0))
    longest = max(map(len, kinds))
    size = (max(WIDTH, 1.6 + PANEL_WIDTH * len(grids)), 1.1 + max(0.8, CELL_HEIGHT * len(rows)) + LETTER * longest)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(1, len(grids), squeeze=False)[0]
    for place, (axes, (title, (grid, _, _))) in enumerate(zip(all_axes, grids.items(), strict=True)):
        # Squares and not an image, which an SVG file would hold as PNG; with few colors the bar is no image either.
        squares = axes.pcolormesh(grid, cmap=colormaps["viridis"].resampled(COLORS), vmin=low, vmax=high)
        axes.invert_yaxis()
        axes.set_facecolor("lightgrey")
        axes.set_xticks(np.arange(len(kinds)) + 0.5, kinds, fontsize=FONT - 1, rotation=90, parse_math=False, color=INK)
        step = -(-len(rows) // MOST_ROWS)
        shown = range(0, len(rows), step) if place == 0 else []
        axes.set_yticks(
            np.array(shown) + 0.5, [rows[row] for row in shown], fontsize=FONT - 1, parse_math=False, color=INK
        )
        axes.set_title(title, fontsize=FONT, color=INK)
    all_axes[0].set_ylabel("layer", fontsize=FONT, color=INK)
    bar = figure.colorbar(squares, ax=all_axes)
    bar.ax.tick_params(labelsize=FONT - 1, colors=INK)
    bar.set_label(label, fontsize=FONT, color=INK)
    return figure


def precision_ranks_figure(
    means: Mapping[str, Mapping[int, Interval]], enough: Mapping[str, int | None], label: str
) -> "Figure":
    """Draws the metric against the rank for both precisions, with t intervals over seeds.

    Args:
        means: By precision, the one that is not quantized first: means by rank, as shown.
        enough: The least rank that is proven to be enough, by precision; it is marked.
        label: The metric with its unit.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure()
    every: list[int] = []
    for (precision, by_rank), (color, marker, line) in zip(means.items(), PRECISION_STYLES, strict=True):
        known = {rank: each for rank, each in sorted(by_rank.items()) if math.isfinite(each.value)}
        every += known
        ranks = [rank * (1.0 if color == BLUE else 1.03) for rank in known]  # beside each other
        values = [each.value for each in known.values()]
        axes.plot(ranks, values, color=color, marker=marker, linestyle=line, markersize=5, label=shown_name(precision))
        for rank, each in zip(ranks, known.values(), strict=True):
            axes.plot([rank, rank], [each.low, each.high], color=color, linewidth=1.4)
        if (found := enough.get(precision)) in known:
            place = list(known).index(found)
            axes.plot([ranks[place]], [values[place]], "o", color=color, markersize=13, fillstyle="none")
    axes.set_xscale("log", base=2)
    ticks = separate_ticks(sorted({float(rank) for rank in every}))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=FONT)
    axes.minorticks_off()
    axes.set_xlabel("rank r (a ring marks the least rank that is proven to be enough)", fontsize=FONT)
    axes.set_ylabel(label, fontsize=FONT, parse_math=False)
    show_legend(axes)
    return figure


def cost_quality_figure(
    points: Mapping[str, tuple[int, float, float]], front: Sequence[str], cost: str, quality: str
) -> "Figure":
    """Draws quality against a cost, with the Pareto front.

    Args:
        points: By configuration: 0 for the precision that is not quantized and 1 for the other one, cost and quality.
        front: Configurations on the front; they are filled and joined.
        cost: Label of the cost.
        quality: Label of the quality.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure()
    known = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
    for name, (precision, x, y) in known.items():
        color, marker, _ = PRECISION_STYLES[precision]
        axes.plot([x], [y], marker, color=color, markersize=6, fillstyle="full" if name in front else "none")
    line = sorted(known[name][1:] for name in front if name in known)
    if line:
        axes.plot(*np.array(line).T, color=GREY, linewidth=1, label="Pareto front")
    costs = [x for _, x, _ in known.values()]
    show_costs(axes.xaxis, costs)
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel(f"{cost} (left is better)", fontsize=FONT, parse_math=False)
    axes.set_ylabel(quality, fontsize=FONT, parse_math=False)
    show_legend(axes)
    label_points(figure, axes, [(shown_name(name), x, y) for name, (_, x, y) in known.items()], FONT - 1, INK)
    return figure


def spectra_figure(spectra: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """Draws the singular values of dW by kind of module, for both precisions.

    Args:
        spectra: By precision, the one that is not quantized first: singular values by kind, descending.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure()
    for (precision, by_kind), (_, marker, line) in zip(spectra.items(), PRECISION_STYLES, strict=True):
        for number, (kind, values) in enumerate(by_kind.items()):
            color, _ = series_style(number)
            label = f"{shown_name(kind)}" if line == "-" else None
            axes.plot(
                range(1, len(values) + 1),
                values,
                line,
                color=color,
                marker=marker,
                markersize=3,
                linewidth=1,
                label=label,
            )
        axes.plot([], [], line, color=INK, marker=marker, markersize=3, label=shown_name(precision))
    axes.set_yscale("log")
    _use_whole_numbers(axes.xaxis)
    axes.set_xlabel("number of the singular value", fontsize=FONT)
    axes.set_ylabel("singular value of dW", fontsize=FONT)
    show_legend(axes)
    return figure


def scores_figure(points: Mapping[str, Sequence[tuple[float, float]]]) -> "Figure":
    """Draws measured divergences against the score of one backward pass.

    Args:
        points: By grouping: score and divergence of each group; only numbers above 0 are drawn.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure()
    for number, (grouping, pairs) in enumerate(points.items()):
        color, _ = series_style(number)
        shown = [pair for pair in pairs if min(pair) > 0]
        if shown:
            axes.plot(*np.array(shown).T, "os^D"[number % 4], color=color, markersize=5, label=grouping)
    low, high = (axes.get_xlim(), axes.get_ylim())
    if axes.lines:
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends = [max(min(low[0], high[0]), 1e-12), max(low[1], high[1])]
        axes.plot(ends, ends, color=GREY, linewidth=0.8, linestyle=":", label="equal")
    axes.set_xlabel("Fisher score of one backward pass", fontsize=FONT)
    axes.set_ylabel("measured KL divergence, nats", fontsize=FONT)
    show_legend(axes)
    return figure


def alike_figure(series: Mapping[str, Sequence[float]], label: str) -> "Figure":
    """Draws a similarity of hidden states after each layer.

    Args:
        series: By what differs between two models, three things at most: similarities, the embeddings' output first.
        label: What the similarity is.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure()
    for (name, values), (color, marker, line) in zip(series.items(), PAIR_STYLES, strict=False):
        axes.plot(range(len(values)), values, line, color=color, marker=marker, markersize=4, label=shown_name(name))
    _use_whole_numbers(axes.xaxis)
    axes.set_xlabel("after layer (0: embeddings)", fontsize=FONT)
    axes.set_ylabel(label, fontsize=FONT)
    show_legend(axes)
    return figure


def _use_whole_numbers(axis: "Axis") -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    axis.set_major_locator(MaxNLocator(integer=True))
