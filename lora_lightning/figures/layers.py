"""One number per module as a heat map: a row for each layer, a column for each kind of module."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.figures.allocation import module_grid
from lora_lightning.figures.cards import CARD_INCHES, DOTS_PER_INCH, FONT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED_KINDS, NUMBERED_LAYERS = 11, 80  # with more a cell is too small for its number
LETTER = 0.051  # inches, of the font
OUTLIER = 4  # times the median
BRIGHT = 0.6  # share of the color map from which viridis is bright


def short_number(value: float) -> str:
    """A number in at most four characters, if it is below 10,000."""
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"  # noqa: PLR2004


def layer_map_figure(
    values: Mapping[str, float],
    title: str,
    highest: float | None = None,
    number: Callable[[float], str] = short_number,
) -> "Figure":
    """Draws one number per module.

    Args:
        values: By full dotted name of the module, at least 0; NaN if unknown.
        title: Of the figure.
        highest: The value of the brightest color; `None` for the largest value, if it is no outlier.
        number: Turns a value into the text of its cell, of at most four characters.

    Returns:
        A matplotlib figure that belongs to no window; grey where there is no adapter or no number.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # a second of import, needed only where something is drawn

    grid, layers, kinds = module_grid(values)
    finite = grid[np.isfinite(grid)]
    largest = float(finite.max(initial=0.0)) or 1.0
    # A single value far above the others would make them all look alike.
    top_value = highest or min(largest, OUTLIER * float(np.median(finite)) if finite.size else 0.0) or largest
    numbered = len(kinds) <= NUMBERED_KINDS and len(layers) <= NUMBERED_LAYERS
    # Inches by hand: matplotlib's own layout takes as long as the rest of the drawing.
    left, bottom, top, right = (
        max(0.5, 0.25 + LETTER * max(map(len, layers))),
        0.18 + LETTER * max(map(len, kinds)),
        0.3,
        0.55,
    )
    width = CARD_INCHES - left - right
    height = max(0.5, (0.15 if numbered else 0.07) * len(layers))
    size = (CARD_INCHES, bottom + height + top)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
    axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=top_value, aspect="auto")
    axes.set_facecolor("lightgrey")
    for row, column in np.argwhere(np.isfinite(grid)) if numbered else ():
        value = grid[row, column]
        color = "black" if value > BRIGHT * top_value else "white"
        axes.text(column, row, number(value), ha="center", va="center", color=color, fontsize=FONT)
    every = 1 if numbered else 5
    axes.set_yticks(range(0, len(layers), every), layers[::every], fontsize=FONT)
    axes.set_xticks(range(len(kinds)), kinds, fontsize=FONT, rotation=90)
    axes.set_ylabel("layer", fontsize=FONT)
    figure.text(0.06 / size[0], 1 - 0.2 / size[1], title, fontsize=FONT + 1)
    beside = figure.add_axes(((left + width + 0.08) / size[0], bottom / size[1], 0.1 / size[0], height / size[1]))
    ticks = [0, top_value / 2, top_value]
    labels = [number(tick) for tick in ticks]
    labels[-1] += "+" if largest > top_value else ""
    figure.colorbar(image, cax=beside, ticks=ticks).ax.set_yticklabels(labels, fontsize=FONT)
    return figure
