"""Matplotlib figures as pixels."""

from typing import TYPE_CHECKING

import numpy as np

from lora_lightning.figures.png import missing_letters_ignored

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def image_of(figure: "Figure") -> "Image":
    """Draws a figure with the number of pixels that it asks for.

    Args:
        figure: Without a window.

    Returns:
        An opaque picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # a second of import
    from PIL import Image  # noqa: PLC0415

    canvas = FigureCanvasAgg(figure)
    with missing_letters_ignored():
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels).convert("RGB")
