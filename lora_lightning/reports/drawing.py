"""Matplotlib figures as SVG inside a page, and as SVG files."""

import io
import re
from html import escape
from typing import TYPE_CHECKING

from lora_lightning.figures.png import DRAWN_BY, missing_letters_ignored
from lora_lightning.figures.study import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METADATA = {"Date": None, "Creator": DRAWN_BY}  # without a date the same figure is the same file
BACKGROUND = re.compile(r'(<g id="patch_1">\s*<path[^>]*style=")fill: (?:#ffffff|white)')
ID = re.compile(r'(\bid="|url\(#|href="#)')


def svg_text(figure: "Figure") -> str:
    """Draws a figure as an SVG file, with letters as text."""
    import matplotlib as mpl  # noqa: PLC0415

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lora_lightning"}), missing_letters_ignored():
        figure.savefig(text, format="svg", metadata=METADATA, facecolor="white")
    return text.getvalue()


def inline_svg(svg: str, prefix: str, description: str) -> str:
    """Prepares an SVG file for a page: ids of its own, the page's color for ink, no background, and a description.

    Args:
        svg: From `svg_text`.
        prefix: Unique in the page.
        description: What the figure shows, for those who do not see it.

    Returns:
        An `<svg>` element.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(
        r'(<g id="patch_1">\s*<path[^>]*style=")fill: (?:#ffffff|white)', r"\1fill: none", element, count=1
    )
    element = ID.sub(rf"\g<1>{prefix}-", element).replace(INK, "currentColor")
    # The page decides about the size; the view box keeps the proportions.
    element = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", element)
    element = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", element)
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
