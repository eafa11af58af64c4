"""The reliability diagram has the bins of `calibration_error`, and says its value."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lora_lightning.figures.calibration import calibration_figure
from lora_lightning.metrics.calibration import calibration_bins, expected_calibration_error


def test_bars_are_the_accuracy_of_each_bin_and_counts_are_below() -> None:
    confidences = np.array([0.1, 0.1, 0.95, 0.95, 0.95, 1.0])
    correct = np.array([1.0, 0, 1, 0, 1, 1])
    found = calibration_bins(confidences, correct)
    figure = calibration_figure(found, "val")
    upper, lower = figure.axes
    assert [(round(bar.get_x() * 15), bar.get_height()) for bar in upper.patches] == [(1, 0.5), (14, 0.75)]
    assert {tuple(point) for line in upper.lines[:1] for point in line.get_xydata().round(4).tolist()} == {
        (0.1, 0.5),
        (0.9625, 0.75),
    }
    assert [bar.get_height() for bar in lower.patches] == [0, 2] + [0] * 12 + [4]
    assert [text.get_text() for text in lower.texts] == ["2", "4"]
    error = expected_calibration_error(confidences, correct)
    assert error == pytest.approx((2 * 0.4 + 4 * 0.2125) / 6)
    assert upper.get_title(loc="left") == f"val: calibration_error {error:.3f}"


def test_large_counts_fit_and_no_row_is_said() -> None:
    confidences = np.repeat(np.linspace(0.01, 0.99, 15), 12_345)
    figure = calibration_figure(calibration_bins(confidences, np.ones_like(confidences)), "test")
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert {text.get_text() for text in figure.axes[1].texts} == {"12k"}
    empty = calibration_figure(calibration_bins(np.empty(0), np.empty(0)), "test")
    FigureCanvasAgg(empty).draw()
    assert empty.axes[0].get_title(loc="left") == "test: no rows"
