"""The size of a figure in TensorBoard, and how many labels fit into it."""

import numpy as np

CARD_INCHES = 3.5  # wide; TensorBoard shows 350 pixels until its user asks for more
DOTS_PER_INCH = 200  # twice as many pixels, for sharp letters, and for the actual size
FONT = 7  # points


def evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers below `count`, evenly spaced, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, limit))})
