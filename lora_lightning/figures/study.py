"""Figures of a study: differences from the reference, quality and costs against rank, the trade-off, and curves.

Ink is drawn in one color of its own, `INK`, which a page may replace, so that figures can be read on light and on dark
pages.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_lightning.figures.cards import evenly_spaced
from lora_lightning.figures.point_labels import label_points
from lora_lightning.statistics.analysis import StudyAnalysis
from lora_lightning.statistics.jackknife import Interval, mean_interval
from lora_lightning.statistics.learning_rate_optimum import mean_scores, rate_optimum
from lora_lightning.statistics.study_results import Metric, Scale, StudyResults
from lora_lightning.statistics.verdicts import Verdict, shown_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = "#010203"  # of text and axes
BLUE, ORANGE, GREEN, RED, GREY = "#3b82c4", "#d97706", "#2f9e63", "#d64545", "#8a8f98"
SERIES = (BLUE, ORANGE, GREEN, RED, "#8e63c7", "#b0722b", "#d15ba5", "#5f9ea0", "#a3a32a", GREY)
WIDTH, HEIGHT, FONT = 5.2, 3.4, 9  # inches, inches, points
LONGEST_NAME = 32
POINTS = 200  # of a curve at most
MOST_LABELS = 14  # of points; of more only those on the Pareto front and the reference are labeled
MOST_TICKS = 12
MOST_NAMED = 24  # names in a legend
WIDE = 8  # ratio of costs from which their axis is logarithmic
MOST_OF_AXIS = 3  # ratio of the whole range of an axis to that of the best values, from which it ends near them
MOST_TICKED = 1e3  # ratio of costs below which a logarithmic axis has more ticks than powers of ten
LARGE = 1e4  # from which numbers on an axis get a prefix, such as 295k
COLORS = {  # and markers, since colors alone do not tell everyone apart
    Verdict.IDENTICAL: (GREEN, "D"),
    Verdict.NOT_WORSE: (GREEN, "o"),
    Verdict.WORSE: (RED, "X"),
    Verdict.UNDECIDED: (ORANGE, "s"),
    Verdict.NOT_TESTED: (GREY, "^"),
    Verdict.NOT_ENOUGH_EVIDENCE: (GREY, "v"),
}


def differences_figure(results: StudyResults, analysis: StudyAnalysis) -> "Figure":
    """Draws the difference of every configuration from the reference with its interval, and the margin.

    Args:
        results: What the study measured.
        analysis: Its verdicts, with at least one comparison.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    metric = results.metric
    figure, axes = new_figure(height=1.1 + 0.27 * len(analysis.comparisons))
    for row, found in enumerate(analysis.comparisons):
        color, marker = COLORS[found.verdict]
        interval = found.difference.interval
        value, low, high = (metric.shown_difference(end) for end in (interval.value, interval.low, interval.high))
        if not math.isnan(low):
            axes.plot([low, high], [row, row], color=color, linewidth=1.8, solid_capstyle="butt")
        drawn = {each.verdict for each in analysis.comparisons[:row]}
        label = None if found.verdict in drawn else str(found.verdict)
        axes.plot([value], [row], marker, color=color, markersize=6, label=label)
    axes.axvline(0, color=INK, linewidth=0.8)
    margin = f"margin {shown_margin(metric)}"  # in the legend: beside its line it could lie across an axis
    axes.axvline(-metric.margin, color=RED, linewidth=1, linestyle="--", label=margin)
    names = [shown_name(found.name) for found in analysis.comparisons]
    axes.set_yticks(range(len(names)), names, fontsize=FONT, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    unit = f",{metric.unit}" if metric.unit else ""
    label = f"difference from {shown_name(results.reference)}{unit} (right is better)"
    # Beside long names the axis is short, so that a label below its middle would leave the figure.
    axes.set_xlabel(label, fontsize=FONT, parse_math=False, loc="right")
    show_legend(axes)
    return figure


def rank_figure(results: StudyResults, name: str | None = None) -> "Figure":
    """Draws the metric or a measurement against the rank, with 95 % t intervals over seeds.

    Args:
        results: What a study of several ranks measured.
        name: A measurement; `None` for the metric.

    Returns:
        A matplotlib figure that belongs to no window; lines join configurations that differ in rank alone, and those
        without a rank, such as full fine-tuning, are horizontal lines in a band, their interval.
    """
    figure, axes = new_figure()
    ranked: dict[str, list[tuple[float, Interval]]] = {}
    others: list[tuple[str, Interval]] = []
    for each in results.configurations:
        numbers = each.measurements.get(name or "", {})
        interval = each.shown_interval(results.metric) if name is None else mean_interval([*numbers.values()])
        if math.isnan(interval.value):
            continue
        if each.rank is not None:
            ranked.setdefault(each.beside_rank, []).append((each.rank, interval))
        else:
            others.append((each.name, interval))
    for number, (kind, points) in enumerate(ranked.items()):
        label = shown_name(kind) if len(ranked) > 1 else None
        _draw_ranks(axes, sorted(points, key=lambda point: point[0]), SERIES[number % len(SERIES)], label)
    for number, (other, interval) in enumerate(others, len(ranked)):
        color = SERIES[number % len(SERIES)]
        axes.axhline(interval.value, color=color, linestyle="--", linewidth=1, label=shown_name(other))
        if not math.isnan(interval.low):
            axes.axhspan(interval.low, interval.high, color=color, alpha=0.15, linewidth=0)
    ranks = sorted(rank for points in ranked.values() for rank, _ in points)
    axes.set_xscale("log", base=2)
    ticks = separate_ticks(ranks)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=FONT)
    axes.minorticks_off()
    if name is not None:
        drawn = [interval for points in ranked.values() for _, interval in points]
        show_costs(axes.yaxis, [interval.value for interval in [*drawn, *(interval for _, interval in others)]])
    axes.set_xlabel("rank r", fontsize=FONT)
    axes.set_ylabel(axis_label(name, results.metric), fontsize=FONT, parse_math=False)
    show_legend(axes)
    return figure


def _draw_ranks(axes: "Axes", points: Sequence[tuple[float, Interval]], color: str, label: str | None) -> None:
    """Draws configurations that differ in rank alone."""
    ranks = [rank for rank, _ in points]
    style = "o-" if len(set(ranks)) == len(ranks) else "o"  # several configurations of one rank are no line
    axes.plot(ranks, [interval.value for _, interval in points], style, color=color, markersize=5, label=label)
    for rank, interval in points:
        axes.plot([rank, rank], [interval.low, interval.high], color=color, linewidth=1.4)


def learning_rates_figure(results: StudyResults) -> "Figure":
    """Draws the validation metric against the learning rates that were tried.

    Args:
        results: What a study measured that chooses learning rates.

    Returns:
        A matplotlib figure that belongs to no window; a triangle marks where between the rates that were tried the
        best one of each configuration lies by a parabola, filled unless it is at their edge. If most of the range
        belongs to rates that are far from the best ones, the axis ends before them.
    """
    figure, axes = new_figure()
    drawn: list[list[float]] = []
    sign = 1.0 if results.metric.higher_is_better else -1.0
    for number, each in enumerate(each for each in results.configurations if each.tried_rates):
        seeds = sorted({seed for values in each.tried_rates.values() for seed in values})
        scores = mean_scores(each.tried_rates, seeds, higher_is_better=results.metric.higher_is_better)
        finite = {rate: score for rate, score in sorted(scores.items()) if math.isfinite(score)}
        if not finite:
            continue
        color, style = series_style(number)
        values = [results.metric.shown_value(sign * score) for score in finite.values()]
        drawn.append(values)
        axes.plot([*finite], values, style, color=color, marker=".", linewidth=1.2, label=shown_name(each.name))
        optimum = rate_optimum(scores)
        fill = "none" if optimum.at_edge else "full"
        axes.plot(
            [math.exp(optimum.log_rate)],
            [max(values, key=lambda value: sign * value)],
            "^",
            color=color,
            fillstyle=fill,
        )
    low, high = limits_near_best(drawn, higher_is_better=results.metric.higher_is_better)
    axes.set_ylim(low, high)
    axes.set_xscale("log")
    ticks = separate_ticks(sorted({rate for each in results.configurations for rate in each.tried_rates}))
    axes.set_xticks(ticks, [scientific(tick) for tick in ticks], fontsize=FONT)
    axes.minorticks_off()
    axes.set_xlabel("learning rate", fontsize=FONT)
    axes.set_ylabel(f"validation {axis_label(None, results.metric)}", fontsize=FONT, parse_math=False)
    show_legend(axes)
    return figure


def limits_near_best(series: Sequence[Sequence[float]], *, higher_is_better: bool) -> tuple[float | None, float | None]:
    """Chooses the ends of an axis so that the best values can be told apart.

    Args:
        series: Values by rate of each configuration, in the order of rates.
        higher_is_better: Whether larger values are better.

    Returns:
        Low and high; `None` where the axis may end as it does by itself. Only bad values are left out, and only if they
        take most of the range; the best value of each series and its better neighbor are always inside.
    """
    sign = 1.0 if higher_is_better else -1.0
    near, every = [], []
    for values in series:
        scores = [sign * value for value in values if math.isfinite(value)]
        best = max(range(len(scores)), key=scores.__getitem__, default=0)
        beside = scores[max(0, best - 1) : best] + scores[best + 1 : best + 2]
        near += [*scores[best : best + 1], *([max(beside)] if beside else [])]
        every += scores
    if not near or max(every) - min(every) <= MOST_OF_AXIS * (max(near) - min(near)):
        return None, None
    height = max(near) - min(near) or 1e-3 * abs(max(near))
    end = sign * (min(near) - height / 2)
    other = sign * (max(near) + height / 8)
    return (end, other) if higher_is_better else (other, end)


def scientific(number: float) -> str:
    """Formats a number above 0, such as `1.25e-4`."""
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def series_style(number: int) -> tuple[str, str]:
    """The color and the line style of a series; both differ among the first ten and beyond."""
    return SERIES[number % len(SERIES)], ("-", "--", ":", "-.")[number // len(SERIES) % 4]


def trade_off_figure(results: StudyResults, analysis: StudyAnalysis, cost: str) -> "Figure":
    """Draws quality against a cost, with the Pareto front.

    Args:
        results: What the study measured.
        analysis: Its verdicts.
        cost: A key of `analysis.pareto`.

    Returns:
        A matplotlib figure that belongs to no window; configurations on the front are filled and joined.
    """
    metric = results.metric
    figure, axes = new_figure()
    known = [each for each in results.configurations if not math.isnan(each.mean_of(cost) + each.mean_value)]
    front, labels = [], []
    for each in known:
        x, y = each.mean_of(cost), metric.shown_value(each.mean_value)
        on_front = each.name in analysis.pareto[cost]
        if on_front:
            front.append((x, y))
        axes.plot([x], [y], "o", color=BLUE, markersize=6, fillstyle="full" if on_front else "none")
        if len(known) > MOST_LABELS and not on_front and each.name != results.reference:
            continue
        labels.append((shown_name(each.name), x, y))
    axes.plot(*np.array(sorted(front)).T, color=BLUE, linewidth=1, label="Pareto front") if front else None
    costs = [each.mean_of(cost) for each in known]
    show_costs(axes.xaxis, costs)
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel(f"{words(cost)} (left is better)", fontsize=FONT, parse_math=False)
    axes.set_ylabel(axis_label(None, metric), fontsize=FONT, parse_math=False)
    show_legend(axes)
    label_points(figure, axes, labels, FONT - 1, INK)
    return figure


def curves_figure(results: StudyResults, name: str) -> "Figure":
    """Draws a curve of every configuration: its mean over seeds at the steps that all seeds have.

    Args:
        results: What the study measured.
        name: A curve that some configuration has.

    Returns:
        A matplotlib figure that belongs to no window. Seeds that have no step in common are drawn one by one.
    """
    figure, axes = new_figure()
    for number, each in enumerate(results.configurations):
        color, style = series_style(number)
        for place, curve in enumerate(averaged_curves(each.curves.get(name, {}))):
            label = None if place else shown_name(each.name)
            marker = "." if curve.shape[1] == 1 else None  # one point makes no line
            axes.plot(curve[0], curve[1], style, color=color, marker=marker, linewidth=1.2, label=label)
    axes.set_xlabel("step or epoch", fontsize=FONT)
    axes.set_ylabel(words(name), fontsize=FONT, parse_math=False)
    show_legend(axes)
    return figure


def separate_ticks(ranks: Sequence[float]) -> list[float]:
    """Chooses ranks that can be written side by side on a logarithmic axis.

    Args:
        ranks: Above 0, ascending; maybe several times.

    Returns:
        The smallest rank, and those that are far enough from the one before.
    """
    kept: list[float] = []
    for rank in ranks:
        if not kept or math.log(rank / kept[-1]) > max(0.0, math.log(ranks[-1] / ranks[0]) / MOST_TICKS):
            kept.append(rank)
    return kept


def averaged_curves(curves: Mapping[int, NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Averages curves over seeds at the steps that all of them have.

    Beyond, as after an early stop, a mean would be over other seeds than before.

    Args:
        curves: By seed, shape (2, points).

    Returns:
        Curves of at most 200 points in all, shape (2, points): one, or one per seed if no step is common to all.
    """
    rows = [row for row in curves.values() if row.size]
    steps = common_steps(rows)
    if len(steps):
        by_step = [dict(zip(*row, strict=True)) for row in rows]
        rows = [np.array([steps, [np.mean([values[step] for values in by_step]) for step in steps]])]
    return [row[:, evenly_spaced(row.shape[1], max(1, POINTS // len(rows)))] for row in rows]


def common_steps(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The steps that all curves have, ascending.

    Args:
        rows: Curves, shape (2, points).

    Returns:
        Steps, shape (steps,), float64; empty without a curve.
    """
    if not rows:
        return np.empty(0)
    steps = np.unique(rows[0][0])
    for row in rows[1:]:
        steps = np.intersect1d(steps, row[0])
    return steps


def words(name: str) -> str:
    """Puts the name of a measurement into words."""
    return shown_name(name.replace("_", " "), 60)


def axis_label(name: str | None, metric: Metric) -> str:
    """The label of an axis with a measurement, or with the metric and its unit."""
    if name is not None:
        return words(name)
    return f"{words(metric.name)}{', %' if metric.scale is Scale.FRACTION else ''}"


def shown_name(name: str, longest: int = LONGEST_NAME) -> str:
    """Shortens a name and replaces characters that an SVG file cannot hold."""
    clean = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}\u2026"


def new_figure(height: float = HEIGHT) -> tuple["Figure", "Axes"]:
    """Creates an empty figure in the style of reports."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # a second of import, needed only where something is drawn

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=FONT)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    return figure, axes


def show_costs(axis: "Axis", numbers: Sequence[float]) -> None:
    """Makes an axis of costs logarithmic if they differ by much, and writes large numbers such as 295k or 2.4M."""
    from matplotlib.ticker import EngFormatter, LogLocator, ScalarFormatter  # noqa: PLC0415

    if numbers and 0 < WIDE * min(numbers) < max(numbers):
        (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(numbers) < MOST_TICKED * min(numbers) else (1,)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(LogLocator(subs=()))
    if max(numbers, default=0) >= LARGE:
        axis.set_major_formatter(EngFormatter(sep=""))


def show_legend(axes: "Axes") -> None:
    """Adds a legend if something has a label; names that start with an underscore are shown, too.

    More than 24 names would leave no room for the axes; the legend then says that it has the first ones.
    """
    every = [line for line in axes.lines if not str(line.get_label()).startswith("_child")]
    handles = every[:MOST_NAMED]
    if not handles:
        return
    # Above the axes, since inside it could hide points.
    legend = axes.legend(
        handles,
        [str(line.get_label()) for line in handles],
        fontsize=FONT - 1,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=min(3, len(handles)),
        borderaxespad=0.2,
        labelcolor=INK,
    )
    if len(every) > MOST_NAMED:
        legend.set_title(f"the first {MOST_NAMED} of {len(every)}:")
        legend.get_title().set(color=INK, fontsize=FONT - 1)
    for text in legend.get_texts():
        text.set_parse_math(False)
