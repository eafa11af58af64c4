"""How far training has moved each layer's hidden states, over layers and steps."""

from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.figures.cards import CARD_INCHES, DOTS_PER_INCH, FONT, evenly_spaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drift_figure(values: dict[tuple[str, int, int], float]) -> "Figure":
    """Draws cosine and CKA, layers upwards and steps to the right.

    Args:
        values: Similarity by metric (`cosine`, `cka`), layer and step.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # a second of import, needed only where something is drawn

    layers, steps = sorted({layer for _, layer, _ in values}), sorted({step for *_, step in values})
    # Inches by hand: matplotlib's own layout takes as long as the rest of the drawing.
    left, between, bottom, top, bar = 0.45, 0.15, 0.85, 0.3, 0.08
    width, height = (CARD_INCHES - left - between - 0.2) / 2, max(0.5, 0.1 * len(layers))
    size = (CARD_INCHES, bottom + height + top)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
    for number, (metric, title) in enumerate((("cosine", "cosine"), ("cka", "CKA"))):
        start = (left + number * (width + between)) / size[0]
        axes = figure.add_axes((start, bottom / size[1], width / size[0], height / size[1]))
        grid = np.array([[values.get((metric, layer, step), np.nan) for step in steps] for layer in layers])
        lowest = float(np.nanmin(grid)) if np.isfinite(grid).any() else 0.0
        image = axes.imshow(grid, aspect="auto", origin="lower", cmap="viridis", vmin=min(lowest, 0.999), vmax=1)
        below = figure.add_axes((start, 0.3 / size[1], width / size[0], bar / size[1]))
        figure.colorbar(image, cax=below, orientation="horizontal").ax.locator_params(nbins=3)
        below.tick_params(labelsize=FONT)
        shown = evenly_spaced(len(steps), 3)
        axes.set_xticks(shown, [str(steps[place]) for place in shown], fontsize=FONT)
        shown = list(range(0, len(layers), -(-len(layers) // int(height / 0.12)))) if number == 0 else []
        axes.set_yticks(shown, [str(layers[place]) for place in shown], fontsize=FONT)
        axes.set_xlabel("step", fontsize=FONT, labelpad=1)
        axes.set_ylabel("layer" if number == 0 else "", fontsize=FONT)
        axes.set_title(f"{title} with the base", fontsize=FONT + 1)
    return figure
