"""Which labels a classifier confuses: a matrix of the most confused ones, legible on TensorBoard's card."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lightning.figures.cards import CARD_INCHES, DOTS_PER_INCH, FONT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 10  # with more, numbers are illegible on a card
LONGEST_LABEL = 22  # characters; the list of mistakes has full names
LETTER, ROW = 0.058, 0.13  # inches, of the font; low rows, since a card in Time Series is twice as wide as high
THOUSAND = 1000


def confusion_figure(counts: Tensor, names: list[str], split: str) -> "Figure":
    """Draws a confusion matrix with its counts; columns have the numbers of the rows, to leave room for names.

    Args:
        counts: (labels, labels), rows are truth, columns prediction.
        names: Label of each row.
        split: The split that the title names.

    Returns:
        A matplotlib figure without a window.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # takes a second, and is needed only to draw

    # Labels come from the user: a $ does not start a formula, and a very long label must not widen the figure.
    shown = [f"{short_label(name)} {number}" for number, name in enumerate(names, start=1)]
    plain: dict[str, Any] = {"fontsize": FONT, "parse_math": False}
    left, right, top, bottom = 0.3 + LETTER * max(map(len, shown)), 0.1, 0.5, 0.08
    cell = min(0.3, (CARD_INCHES - left - right) / len(names))
    height = top + bottom + ROW * len(names)
    figure = Figure(figsize=(CARD_INCHES, height), dpi=DOTS_PER_INCH)
    box = (left / CARD_INCHES, bottom / height, cell * len(names) / CARD_INCHES, ROW * len(names) / height)
    axes = figure.add_axes(box)
    axes.imshow(counts.float().sqrt().numpy(), cmap="Blues", vmin=0, aspect="auto")
    strongest = float(counts.max()) or 1.0
    for row, column in counts.nonzero().tolist():
        value = int(counts[row, column])
        text = short_count(value)
        color = "white" if value > strongest / 2 else "black"
        font = min(FONT, 72 * cell / (0.7 * len(text)))  # a digit is 0.6 of the font's size wide
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=font)
    axes.set_yticks(range(len(names)), shown, **plain)
    axes.set_xticks(range(len(names)), [str(number) for number in range(1, len(names) + 1)], **plain)
    axes.xaxis.tick_top()
    axes.tick_params(length=2, pad=1.5)
    axes.set_ylabel("true", fontsize=FONT)
    axes.set_xlabel("predicted", fontsize=FONT, labelpad=2)
    axes.xaxis.set_label_position("top")
    title = f"{split}: the {len(names)} most confused labels"
    figure.text(0.06 / CARD_INCHES, 1 - 0.16 / height, title, fontsize=FONT + 1, parse_math=False)
    return figure


def short_count(value: int) -> str:
    """Writes a count in at most four characters, if it is below a million."""
    return str(value) if value < THOUSAND else f"{value / THOUSAND:.0f}k"


def short_label(name: str, longest: int = LONGEST_LABEL) -> str:
    """Shortens a label for a figure or a table.

    Args:
        name: Any text.
        longest: Maximum number of characters.

    Returns:
        One line, control characters escaped.
    """
    line = "".join(letter if letter.isprintable() else f"{letter!a}"[1:-1] for letter in name)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
