"""The picture of labels shows the worst ones, legibly, and no name is drawn as anything else."""

from itertools import pairwise
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lora_lightning.figures.labels import label_scores_figure
from lora_lightning.metrics.label_scores import LabelScore


def planted(labels: int) -> list[LabelScore]:
    """The later, the worse."""
    return [
        LabelScore(f"quite_a_long_name_of_an_intent_{number}", 1.0, 0.5, 1 - number / 200, 30 + number)
        for number in range(labels)
    ]


def bars_of(axes: Any) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def test_of_many_labels_the_worst_are_shown() -> None:
    figure = label_scores_figure(planted(150), "test")
    (axes,) = figure.axes
    assert bars_of(axes) == pytest.approx([1 - number / 200 for number in range(149, 129, -1)])
    assert axes.get_yticklabels()[0].get_text().endswith("(179)")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first is on top
    assert figure.texts[0].get_text() == "test: the 20 of 150 labels with the lowest F1 (rows)"


def test_no_label_is_cut_off_or_covers_another() -> None:
    figure = label_scores_figure(planted(150), "test")
    FigureCanvasAgg(figure).draw()
    width, height = figure.canvas.get_width_height()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in (*axes.get_yticklabels(), *axes.get_xticklabels(), *figure.texts)]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(rows))
    assert axes.get_window_extent().width > width / 3


def test_scores_that_are_not_defined_have_no_marker() -> None:
    scores = [
        LabelScore("$x", None, 0.0, 0.0, 5),
        LabelScore("b", 0.25, 0.75, 0.375, 8),
        LabelScore("c", *[None] * 3, 0),
    ]
    figure = label_scores_figure(scores, "val")
    (axes,) = figure.axes
    precision, recall = (collection.get_offsets().tolist() for collection in axes.collections)
    assert precision == [[0.25, 1.0]]
    assert recall == [[0.0, 0.0], [0.75, 1.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$x (5)", "b (8)"]
    assert not axes.get_yticklabels()[0].get_parse_math()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["precision", "recall", "F1"]


def test_without_rows_there_is_an_empty_picture() -> None:
    figure = label_scores_figure([LabelScore("a", None, None, None, 0)], "val")
    FigureCanvasAgg(figure).draw()
    assert bars_of(figure.axes[0]) == []
