"""A reliability diagram: how often predictions of each confidence are right, and how many there are."""

from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.figures.cards import CARD_INCHES, DOTS_PER_INCH, FONT
from lora_lightning.metrics.calibration import CalibrationBins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 3.0  # inches
BLUE, GREY, RED = "#3b82c4", "#8a8f98", "#d64545"
THOUSAND = 1000


def calibration_figure(found: CalibrationBins, split: str) -> "Figure":
    """Draws accuracy against confidence, the diagonal on which they are equal, and the rows of each bin.

    Args:
        found: The bins; empty ones have no bar.
        split: The split that the title names.

    Returns:
        A matplotlib figure without a window.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # takes a second, and is needed only to draw

    figure = Figure(figsize=(CARD_INCHES, HEIGHT), dpi=DOTS_PER_INCH, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    edges = np.linspace(0, 1, len(found.counts) + 1)
    centers, width = (edges[:-1] + edges[1:]) / 2, edges[1]
    filled = found.counts > 0
    upper.bar(centers[filled], found.accuracy[filled], width * 0.94, color=BLUE, alpha=0.55, label="accuracy")
    upper.plot(found.confidence[filled], found.accuracy[filled], ".", color=BLUE, markersize=4)
    upper.plot([0, 1], [0, 1], "--", color=RED, linewidth=0.9, label="accuracy = confidence")
    upper.set_ylim(0, 1.02)
    upper.set_xlim(0, 1)
    upper.set_ylabel("share that is right", fontsize=FONT)
    upper.legend(fontsize=FONT - 1, frameon=False, loc="upper left")
    error = f"calibration_error {found.error:.3f}" if filled.any() else "no rows"
    upper.set_title(f"{split}: {error}", fontsize=FONT + 1, parse_math=False, loc="left")
    lower.bar(centers, found.counts, width * 0.94, color=GREY)
    for center, count in zip(centers[filled], found.counts[filled], strict=True):
        text = str(count) if count < THOUSAND else f"{count / THOUSAND:.{int(count < 10 * THOUSAND)}f}k"
        lower.annotate(
            text, (center, count), (0, 1), textcoords="offset points", ha="center", va="bottom", fontsize=FONT - 1
        )
    lower.set_ylim(0, max(1.0, 1.3 * found.counts.max(initial=0)))
    lower.set_ylabel("rows", fontsize=FONT)
    lower.set_xlabel("confidence: probability of the predicted label", fontsize=FONT)
    for axes in (upper, lower):
        axes.tick_params(labelsize=FONT, length=2, pad=1.5)
    return figure
