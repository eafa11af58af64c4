"""Matplotlib figures as PNG files."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 160
DRAWN_BY = "lora_lightning"  # in the metadata of files, which tells them from those of others


def png_bytes(figure: "Figure") -> bytes:
    """Draws a figure as a PNG file."""
    content = io.BytesIO()
    with missing_letters_ignored():
        figure.savefig(content, format="png", dpi=DOTS_PER_INCH, facecolor="white", metadata={"Software": DRAWN_BY})
    return content.getvalue()


@contextmanager
def missing_letters_ignored() -> Iterator[None]:
    """Browsers have letters that matplotlib's own font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield
