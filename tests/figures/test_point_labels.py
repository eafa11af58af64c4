"""Names beside points cover neither each other nor a point."""

from itertools import combinations

import pytest
from matplotlib.transforms import Bbox

from lora_lightning.figures.point_labels import label_points
from lora_lightning.figures.study import new_figure

NEAR = {
    "LoRA": (1.0, 94.0),
    "LoRA+": (1.001, 94.0),
    "DoRA": (1.002, 93.98),
    "rsLoRA": (1.02, 93.1),
    "EVA": (1.021, 93.1),
}


@pytest.mark.parametrize("names", [list(NEAR), list(NEAR)[::-1]], ids=["forward", "backward"])
def test_labels_of_near_points_cover_nothing(names: list[str]) -> None:
    figure, axes = new_figure()
    for x, y in NEAR.values():
        axes.plot([x], [y], "o", markersize=6)
    axes.margins(x=0.15, y=0.12)
    label_points(figure, axes, [(name, *NEAR[name]) for name in names], 9, "#000000")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    points = [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in axes.transData.transform(list(NEAR.values()))]
    assert [text.get_text() for text in axes.texts] == names
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert not [(box, point) for box in boxes for point in points if box.overlaps(point)]


def test_a_label_with_a_dollar_is_no_formula_and_stands_right_of_its_point() -> None:
    figure, axes = new_figure()
    axes.plot([1.0], [2.0], "o")
    label_points(figure, axes, [("a $x$", 1.0, 2.0)], 9, "#000000")
    assert axes.texts[0].get_text() == "a $x$"
    assert not axes.texts[0].get_parse_math()
    assert axes.texts[0].get_position() == (5, 4)
