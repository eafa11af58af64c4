"""Pictures of how adapters use their rank: a heat map over the model, and spectra over training."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.lora.delta import split_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED_COLUMNS = 48  # with more layers a cell is too narrow for its number
FLOOR = 1e-5  # of the largest singular value; what is smaller is left out of a picture
CURVES = 12  # measurements in one panel at most
PANELS_A_ROW = 4
Spectra = Sequence[tuple[int, Sequence[float]]]  # (step, singular values), in the order of the steps


def utilization_figure(utilization: Mapping[str, float], step: int) -> "Figure":
    """Draws utilization as a heat map, a row for each kind of module and a column for each layer.

    Args:
        utilization: effective rank / r by module; NaN where there is none.
        step: Optimizer steps so far, for the title.

    Returns:
        A matplotlib figure that belongs to no window; cells hold percent.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # a second of import, needed only where something is drawn

    places = {module: split_name(module) for module in utilization}
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    layers = sorted({layer for layer, _ in places.values()}, key=lambda layer: math.inf if layer is None else layer)
    grid = np.full((len(kinds), len(layers)), np.nan)
    for module, (layer, kind) in places.items():
        grid[kinds.index(kind), layers.index(layer)] = utilization[module]
    numbered = len(layers) <= NUMBERED_COLUMNS
    # Inches by hand: matplotlib's own layout takes as long as the rest of the drawing.
    left, bottom, top, right = 0.2 + 0.085 * max(map(len, kinds)), 0.5, 0.4, 0.7
    width, height = max(2.5, (0.32 if numbered else 0.14) * len(layers)), 0.3 * len(kinds)
    size = (left + width + right, bottom + height + top)
    figure = Figure(figsize=size)
    axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor("lightgrey")  # where there is no adapter, or no number
    for row, column in np.argwhere(~np.isnan(grid)) if numbered else ():
        value = grid[row, column]
        color = "black" if value > 0.6 else "white"  # noqa: PLR2004  # viridis is bright there
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8)
    every = 1 if numbered else 5
    names = ["other" if layer is None else str(layer) for layer in layers]
    axes.set_xticks(range(0, len(layers), every), names[::every], fontsize=8)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axes.set_xlabel("layer", fontsize=8)
    figure.text(0.1 / size[0], 1 - 0.25 / size[1], f"step {step}: % of r in use (effective rank / r)", fontsize=9)
    beside = figure.add_axes(((left + width + 0.1) / size[0], bottom / size[1], 0.12 / size[0], height / size[1]))
    figure.colorbar(image, cax=beside, ticks=[0, 0.5, 1]).ax.set_yticklabels(["0", "50", "100"], fontsize=8)
    return figure


def spectra_figure(history: Mapping[str, Spectra]) -> "Figure":
    """Draws the singular values of a few modules, a panel each, a curve for each measurement.

    Args:
        history: Measurements by module, at least one module.

    Returns:
        A matplotlib figure that belongs to no window; the axis of singular values is logarithmic.
    """
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import LogLocator, MaxNLocator  # noqa: PLC0415

    columns = min(PANELS_A_ROW, len(history))
    rows = math.ceil(len(history) / columns)
    figure = Figure(figsize=(0.6 + 2.9 * columns, 0.7 + 2.1 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    positive = [value for curves in history.values() for _, values in curves for value in values if value > 0]
    largest = max(positive, default=0.0)
    decades_apart = largest > 100 * max(min(positive, default=0.0), FLOOR * largest)
    for number, (module, curves) in enumerate(history.items()):
        panel = panels[number]
        shown = [curves[place] for place in evenly_spaced(len(curves), CURVES)]
        for order, (step, values) in enumerate(shown):
            color = colormaps["viridis"](0.9 * (1 - order / max(len(shown) - 1, 1)))
            heights = [value if value > FLOOR * largest else np.nan for value in values]
            label = f"step {step}" if order in {0, len(shown) - 1} else None
            panel.plot(range(1, len(values) + 1), heights, color=color, linewidth=1.2, marker=".", label=label)
        panel.set_title(module, fontsize=8)
        panel.tick_params(labelsize=8, labelbottom=number >= len(history) - columns)
    for panel in panels[len(history) :]:
        panel.set_visible(False)
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if largest > 0:
        panels[0].set_yscale("log")
        panels[0].minorticks_off()
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1,) if decades_apart else (1, 2, 5)))
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].legend(fontsize=8)
    figure.supxlabel("number of the singular value", fontsize=9)
    figure.supylabel("singular value of dW", fontsize=9)
    figure.suptitle("spectra of dW over training, from yellow to blue", fontsize=9)
    margins = {"left": 0.8 / figure.get_figwidth(), "right": 1 - 0.1 / figure.get_figwidth()}
    margins |= {"bottom": 0.5 / figure.get_figheight(), "top": 1 - 0.55 / figure.get_figheight()}
    figure.subplots_adjust(**margins, hspace=0.25, wspace=0.08)
    return figure


def evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers below `count`, evenly spaced, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, limit))})
