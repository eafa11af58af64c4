"""The ranks of all layers as a heat map."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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

    grid, rows, kinds = module_grid(ranks)
    width = max(3.5, 1.6 + CELL_WIDTH * len(kinds) + LETTER * max(map(len, rows)))
    height = 0.9 + CELL_HEIGHT * len(rows) + LETTER * max(map(len, kinds))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    most = max(ranks.values())
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=most, aspect="auto")
    axes.set_facecolor("lightgrey")
    for row, column in np.argwhere(~np.isnan(grid)) if len(ranks) <= MOST_NUMBERED else ():
        value = grid[row, column]
        color = "black" if value > 0.6 * most else "white"  # viridis is bright there
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=FONT)
    axes.set_yticks(range(len(rows)), rows, fontsize=FONT, parse_math=False)
    axes.set_xticks(range(len(kinds)), kinds, fontsize=FONT, rotation=90, parse_math=False)
    axes.set_ylabel("layer", fontsize=FONT)
    axes.set_title("rank by layer and module", fontsize=FONT + 1)
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(labelsize=FONT)
    bar.set_label("rank", fontsize=FONT)
    return figure


def module_grid(numbers: Mapping[str, float]) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Arranges numbers of modules by layer and kind.

    Args:
        numbers: By full dotted name of the module; at least one.

    Returns:
        Numbers by row and column, NaN where there is none, with the names of both. A row is the number of a layer, or
        with several stacks of layers, as in an encoder-decoder, the name that ends in it, without what all share.
    """
    places = {module: _row_and_kind(module) for module in numbers}
    stacks = list(dict.fromkeys(row.rpartition(".")[0] for row, _ in places.values() if row))
    prefixes = sorted({row for row, _ in places.values()}, key=lambda row: _place_of_row(row, stacks))
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    grid = np.full((len(prefixes), len(kinds)), np.nan)
    for module, (row, kind) in places.items():
        grid[prefixes.index(row), kinds.index(kind)] = numbers[module]
    levels = zip(*(stack.split(".") for stack in stacks), strict=False)
    shared = len([*takewhile(lambda names: len({*names}) == 1, levels)])
    rows = [".".join(row.split(".")[shared:]) or "other" for row in prefixes]
    return grid, rows, kinds


def _place_of_row(row: str, stacks: Sequence[str]) -> tuple[int, int]:
    """Its stack, and the number of its layer; modules without a number come last."""
    stack, _, number = row.rpartition(".")
    return (stacks.index(stack), int(number)) if row else (len(stacks), 0)


def _row_and_kind(module: str) -> tuple[str, str]:
    """`("encoder.layer.3", "attention.self.query")`; no row for a module without a number."""
    number, kind = split_layer_number(module)
    return ("", kind) if number is None else (module.removesuffix(kind).removesuffix("."), kind)
