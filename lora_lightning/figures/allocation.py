"""The ranks of all layers as a heat map."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.lora.delta import split_layer_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL_WIDTH, CELL_HEIGHT, LETTER, FONT = 0.62, 0.22, 0.075, 8  # inches, inches, inches, points
MOST_NUMBERED = 1000  # cells with a number; more would take a minute to draw


def rank_map_figure(ranks: Mapping[str, int]) -> "Figure":
    """Draws the ranks, a row for each layer and a column for each kind of module.

    Args:
        ranks: By full dotted name of the module; at least one.

    Returns:
        A matplotlib figure that belongs to no window; grey where there is no adapter.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # a second of import, needed only where something is drawn

    places = {module: split_layer_number(module) for module in ranks}
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    layers = sorted({layer for layer, _ in places.values()}, key=lambda layer: math.inf if layer is None else layer)
    grid = np.full((len(layers), len(kinds)), np.nan)
    for module, (layer, kind) in places.items():
        grid[layers.index(layer), kinds.index(kind)] = ranks[module]
    width = max(3.5, 1.6 + CELL_WIDTH * len(kinds))
    height = 0.9 + CELL_HEIGHT * len(layers) + LETTER * max(map(len, kinds))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    most = max(ranks.values())
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=most, aspect="auto")
    axes.set_facecolor("lightgrey")
    for row, column in np.argwhere(~np.isnan(grid)) if len(ranks) <= MOST_NUMBERED else ():
        value = grid[row, column]
        color = "black" if value > 0.6 * most else "white"  # viridis is bright there
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=FONT)
    axes.set_yticks(range(len(layers)), ["other" if layer is None else str(layer) for layer in layers], fontsize=FONT)
    axes.set_xticks(range(len(kinds)), kinds, fontsize=FONT, rotation=90, parse_math=False)
    axes.set_ylabel("layer", fontsize=FONT)
    axes.set_title("rank by layer and module", fontsize=FONT + 1)
    figure.colorbar(image, ax=axes, label="rank").ax.tick_params(labelsize=FONT)
    return figure
