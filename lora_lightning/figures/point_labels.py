"""Names beside points, placed so that they cover neither each other nor a point."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACES = (  # of a label beside its point, in points of 1/72 inch; the first that is free is taken
    (5, 4, "left"),
    (5, -10, "left"),
    (-5, 4, "right"),
    (-5, -10, "right"),
    (5, 14, "left"),
    (5, -20, "left"),
    (-5, 14, "right"),
    (-5, -20, "right"),
)


def label_points(
    figure: "Figure", axes: "Axes", labels: Sequence[tuple[str, float, float]], size: float, color: str
) -> None:
    """Writes a name beside each point.

    Args:
        figure: That the axes belong to.
        axes: With all points drawn, and with the scales and limits that they keep: places are found by them.
        labels: Name, x and y of each point.
        size: Of the letters, in points.
        color: Of the letters.
    """
    from matplotlib.transforms import Bbox  # noqa: PLC0415

    figure.draw_without_rendering()  # lays the axes out
    drawn = [line.get_xydata() for line in axes.lines if line.get_marker() != "None"]
    points = [point for points in drawn for point in axes.transData.transform(points)]
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in points]
    for name, x, y in labels:
        text = axes.annotate(
            name, (x, y), textcoords="offset points", xytext=(0, 0), fontsize=size, color=color, parse_math=False
        )
        found: list[tuple[int, int, Bbox]] = []  # what it covers, and which place
        for right, up, alignment in PLACES:
            text.set(position=(right, up), horizontalalignment=alignment)
            box = text.get_window_extent()
            found.append((sum(box.overlaps(other) for other in taken), len(found), box))
        _, place, box = min(found, key=lambda each: each[:2])
        right, up, alignment = PLACES[place]
        text.set(position=(right, up), horizontalalignment=alignment)
        taken.append(box)
