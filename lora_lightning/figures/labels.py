"""How well each label is predicted: bars of the labels with the lowest F1."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_lightning.figures.cards import CARD_INCHES, DOTS_PER_INCH, FONT
from lora_lightning.figures.confusion import short_label
from lora_lightning.metrics.label_scores import LabelScore, worst_first

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 20
BLUE = "#3b82c4"
LETTER, ROW = 0.058, 0.14  # inches, of the font
TOP, BOTTOM, RIGHT = 0.46, 0.22, 0.12  # inches
PRECISION: dict[str, Any] = {"marker": "|", "color": "#d97706"}
RECALL: dict[str, Any] = {"marker": ".", "color": "#2f9e63"}


def label_scores_figure(scores: Sequence[LabelScore], split: str) -> "Figure":
    """Draws F1, precision and recall of the labels with the lowest F1, the lowest on top.

    Args:
        scores: Of all labels.
        split: The split that the title names.

    Returns:
        A matplotlib figure without a window.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # takes a second, and is needed only to draw

    shown = worst_first(scores)[:MOST_LABELS]
    # Labels come from the user: a $ does not start a formula, and a very long label must not widen the figure.
    names = [f"{short_label(score.label)} ({score.support})" for score in shown]
    left = 0.1 + LETTER * max(map(len, names), default=0)
    height = TOP + BOTTOM + ROW * max(len(names), 1)
    figure = Figure(figsize=(CARD_INCHES, height), dpi=DOTS_PER_INCH)
    width = CARD_INCHES - left - RIGHT
    axes = figure.add_axes((left / CARD_INCHES, BOTTOM / height, width / CARD_INCHES, (height - TOP - BOTTOM) / height))
    rows = range(len(shown))
    axes.barh(rows, [score.f1 or 0.0 for score in shown], height=0.7, color=BLUE, alpha=0.55, label="F1")
    for name, style in (("precision", PRECISION), ("recall", RECALL)):
        found = [(getattr(score, name), row) for row, score in enumerate(shown) if getattr(score, name) is not None]
        axes.scatter([value for value, _ in found], [row for _, row in found], s=22, zorder=3, label=name, **style)
    plain: dict[str, Any] = {"fontsize": FONT, "parse_math": False}
    axes.set_yticks(rows, names, **plain)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks((0, 0.2, 0.4, 0.6, 0.8, 1))
    axes.tick_params(labelsize=FONT, length=2, pad=1.5)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    place = (CARD_INCHES - 0.06) / CARD_INCHES, 1 - 0.2 / height
    figure.legend(loc="upper right", bbox_to_anchor=place, ncols=3, fontsize=FONT, frameon=False, handletextpad=0.3)
    title = f"{split}: F1 of each label (number of rows)"
    if len(shown) < len(scores):
        title = f"{split}: the {len(shown)} of {len(scores)} labels with the lowest F1 (rows)"
    figure.text(0.06 / CARD_INCHES, 1 - 0.16 / height, title, fontsize=FONT + 1, parse_math=False)
    return figure
