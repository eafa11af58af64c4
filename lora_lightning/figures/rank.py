"""Figures of how adapters use their rank: a heat map over the model, and spectra over training.

TensorBoard shows a figure in a card 350 pixels wide by default, so all are drawn for that width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.figures.cards import CARD_INCHES, DOTS_PER_INCH, FONT, evenly_spaced
from lora_lightning.figures.layers import layer_map_figure
from lora_lightning.lora.delta import split_layer_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR = 1e-5  # of the largest singular value; what is smaller is left out of a picture
CURVES = 12  # measurements in one panel at most
PANELS_A_ROW = 2
Spectra = Sequence[tuple[int, Sequence[float]]]  # (step, singular values), in the order of the steps


def utilization_figure(utilization: Mapping[str, float], step: int) -> "Figure":
    """Draws utilization as a heat map, a row for each layer and a column for each kind of module.

    Args:
        utilization: effective rank / r by module; NaN if unknown.
        step: Optimizer steps so far, for the title.

    Returns:
        A matplotlib figure that belongs to no window; cells hold percent.
    """
    return layer_map_figure(
        utilization,
        f"step {step}: % of r in use (effective rank / r)",
        highest=1,
        number=lambda value: f"{100 * value:.0f}",
    )


def spectra_figure(history: Mapping[str, Spectra]) -> "Figure":
    """Draws the singular values of a few modules, a panel each, a curve for each measurement.

    Args:
        history: Measurements by module, at least one module.

    Returns:
        A matplotlib figure that belongs to no window; the axis of singular values is logarithmic.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    columns = min(PANELS_A_ROW, len(history))
    rows = math.ceil(len(history) / columns)
    figure = Figure(figsize=(CARD_INCHES, 0.75 + 1.15 * rows), dpi=DOTS_PER_INCH)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    positive = [value for curves in history.values() for _, values in curves for value in values if value > 0]
    largest = max(positive, default=0.0)
    for number, (module, curves) in enumerate(history.items()):
        panel = panels[number]
        _draw_curves(panel, [curves[place] for place in evenly_spaced(len(curves), CURVES)], FLOOR * largest)
        layer, kind = split_layer_number(module)
        panel.set_title(module if layer is None else f"{layer}: {kind}", fontsize=FONT, pad=3)
        panel.tick_params(labelsize=FONT, labelbottom=number >= len(history) - columns)
    for panel in panels[len(history) :]:
        panel.set_visible(False)
    if largest > 0:
        smallest = max(min(positive), FLOOR * largest)
        _scale(panels[0], decades_apart=largest > 100 * smallest)
    steps = [step for step, _ in next(iter(history.values()))]
    over = f", step {steps[0]} (yellow) to {steps[-1]} (blue)" if steps else ""
    figure.text(0.02, 1 - 0.18 / figure.get_figheight(), f"spectra of dW{over}", fontsize=FONT + 1)
    margins = {"left": 0.5 / CARD_INCHES, "right": 1 - 0.08 / CARD_INCHES}
    margins |= {"bottom": 0.25 / figure.get_figheight(), "top": 1 - 0.45 / figure.get_figheight()}
    figure.subplots_adjust(**margins, hspace=0.25, wspace=0.08)
    return figure


def _draw_curves(panel: "Axes", curves: Spectra, floor: float) -> None:
    from matplotlib import colormaps  # noqa: PLC0415

    for order, (_, values) in enumerate(curves):
        color = colormaps["viridis"](0.9 * (1 - order / max(len(curves) - 1, 1)))
        heights = [value if value > floor else np.nan for value in values]
        panel.plot(range(1, len(values) + 1), heights, color=color, linewidth=1, marker=".", markersize=3)


def _scale(panel: "Axes", decades_apart: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator  # noqa: PLC0415

    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_yscale("log")
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(subs=(1,) if decades_apart else (1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
