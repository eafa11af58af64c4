"""Which labels the confusion figure picks, and that it shows their names and numbers."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from torch import Tensor

from lora_lightning.figures.cards import CARD_INCHES
from lora_lightning.figures.confusion import MOST_LABELS, confusion_figure, short_count
from lora_lightning.training.confusion import ConfusionFigure, confusion_table, most_confused_labels


def planted(mistakes: dict[tuple[int, int], int], classes: int = 10) -> Tensor:
    """Twenty right answers a class, and mistakes by (truth, prediction)."""
    counts = torch.eye(classes, dtype=torch.int64) * 20
    for (truth, prediction), number in mistakes.items():
        counts[truth, prediction] = number
    return counts


def test_the_most_confused_pair_comes_first_and_stands_together() -> None:
    counts = planted({(7, 2): 3, (1, 8): 9, (5, 4): 2, (4, 5): 2})
    assert most_confused_labels(counts, 20) == [1, 8, 4, 5, 2, 7]


def test_mistakes_in_both_directions_count_together() -> None:
    assert most_confused_labels(planted({(0, 1): 5, (2, 3): 3, (3, 2): 3}), 20) == [2, 3, 0, 1]


def test_a_label_in_several_pairs_is_shown_once() -> None:
    assert most_confused_labels(planted({(6, 3): 9, (3, 0): 8, (0, 6): 7, (9, 3): 1}), 20) == [3, 6, 0, 9]


@pytest.mark.parametrize(("limit", "expected"), [(2, [1, 8]), (3, [1, 8, 2]), (4, [1, 8, 2, 7]), (1, [1])])
def test_no_more_labels_than_the_limit(limit: int, expected: list[int]) -> None:
    assert most_confused_labels(planted({(7, 2): 3, (1, 8): 9, (5, 4): 2}), limit) == expected


def test_without_a_mistake_the_first_labels_are_shown() -> None:
    assert most_confused_labels(planted({}), 4) == [0, 1, 2, 3]
    assert most_confused_labels(planted({}, classes=3), 20) == [0, 1, 2]


def test_counts_are_left_as_they_are() -> None:
    counts = planted({(0, 1): 5})
    before = counts.clone()
    most_confused_labels(counts, 2)
    assert counts.equal(before)


def luminance(color: tuple[float, ...]) -> float:
    """Relative luminance of the Web Content Accessibility Guidelines."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_figure_shows_names_and_numbers_where_they_belong() -> None:
    counts = torch.tensor([[30, 0, 2], [1, 28, 0], [0, 0, 0]])
    names = ["play_music", "next_song", "what_song"]
    figure = confusion_figure(counts, names, "val")
    (axes,) = figure.axes
    FigureCanvasAgg(figure).draw()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["play_music 1", "next_song 2", "what_song 3"]
    assert axes.get_xticks().tolist() == axes.get_yticks().tolist() == [0, 1, 2]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "30", (2, 0): "2", (0, 1): "1", (1, 1): "28"}  # (prediction, truth); zeros stay empty
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [text.get_text() for text in figure.texts] == ["val: the 3 most confused labels"]


@pytest.mark.parametrize("strongest", [1, 3, 30, 3000])
def test_numbers_stand_out_from_their_cell(strongest: int) -> None:
    counts = torch.arange(strongest, 0, -max(1, strongest // 25))[:25]
    counts = torch.nn.functional.pad(counts, (0, 25 - len(counts))).reshape(5, 5)
    (axes,) = confusion_figure(counts, list("abcde"), "test").axes
    (image,) = axes.images
    for text in axes.texts:
        column, row = map(int, text.get_position())
        cell = luminance(image.to_rgba(image.get_array())[row, column, :3])
        number = luminance(to_rgb(text.get_color()))
        contrast = (max(cell, number) + 0.05) / (min(cell, number) + 0.05)
        assert contrast > 4.4  # the guidelines ask for 4.5 of small text


@pytest.mark.parametrize(("labels", "most"), [(2, 9), (MOST_LABELS, 99), (MOST_LABELS, 2000)])
def test_everything_is_legible_on_a_card(labels: int, most: int) -> None:
    names = [f"quite_a_long_name_of_an_intent_{index}" for index in range(labels)]
    figure = confusion_figure(torch.randint(0, most + 1, (labels, labels)), names, "test")
    FigureCanvasAgg(figure).draw()
    assert figure.get_figwidth() == CARD_INCHES
    width, height = figure.canvas.get_width_height()
    (axes,) = figure.axes
    drawn = [*axes.get_xticklabels(), *axes.get_yticklabels(), *figure.texts, axes.xaxis.label, axes.yaxis.label]
    for label in drawn:
        box = label.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert label.get_fontsize() >= 7  # points on a card of 3.5 inches
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(rows))
    numbers = [text.get_window_extent() for text in axes.texts]
    cell = abs(axes.transData.transform((1, 1)) - axes.transData.transform((0, 0)))
    assert all(number.width < cell[0] and number.height < cell[1] for number in numbers)
    assert all(text.get_fontsize() >= 5 for text in axes.texts)


def test_large_counts_are_rounded() -> None:
    assert [short_count(value) for value in (0, 999, 1000, 15400)] == ["0", "999", "1k", "15k"]


def test_the_table_lists_mistakes_by_how_frequent_they_are() -> None:
    counts = planted({(0, 1): 5, (3, 2): 8}, classes=4)
    table = confusion_table(counts, list("abcd"))
    assert table.columns == ["true", "predicted", "count", "share of the true label"]
    assert table.rows == [["d", "c", 8, 8 / 28], ["a", "b", 5, 5 / 25]]
    assert confusion_table(counts, list("abcd"), limit=1).rows == table.rows[:1]


def test_other_tasks_get_no_figure() -> None:
    trainer: Any = SimpleNamespace(sanity_checking=False)
    ConfusionFigure().on_validation_end(trainer, cast("Any", object()))
    ConfusionFigure().on_test_end(trainer, cast("Any", object()))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (r"$\frac{", r"$\frac{"),  # no mathematics, which this would not even be
        ("costs $5 or $6", "costs $5 or $6"),
        ("<b>alert(1)</b>", "<b>alert(1)</b>"),  # a picture runs nothing
        ("two\nlines\x00", r"two\nlines\x00"),
        ("a" * 100_000, "a" * 19 + "..."),
    ],
)
def test_a_label_is_drawn_as_it_is_spelt(name: str, shown: str) -> None:
    figure = confusion_figure(planted({(0, 1): 5}, classes=2), [name, "other"], "val")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    label = axes.get_yticklabels()[0]
    assert label.get_text() == f"{shown} 1"
    assert not label.get_parse_math()
    assert figure.get_figwidth() == CARD_INCHES
