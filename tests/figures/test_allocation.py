"""The heat map of ranks has a cell for every layer, also if a model has several stacks of layers."""

from typing import Any

import numpy as np

from lora_lightning.figures.allocation import rank_map_figure


def parts(ranks: dict[str, int]) -> tuple[Any, list[str], list[str]]:
    """Numbers, names of rows and names of columns."""
    axes = rank_map_figure(ranks).axes[0]
    return (
        np.ma.filled(axes.images[0].get_array(), np.nan),
        [label.get_text() for label in axes.get_yticklabels()],
        [label.get_text() for label in axes.get_xticklabels()],
    )


def test_rows_are_layers_and_columns_are_modules() -> None:
    grid, rows, columns = parts({"pooler.dense": 9, "layer.0.query": 1, "layer.0.value": 2, "layer.1.value": 3})
    assert (rows, columns) == (["0", "1", "other"], ["pooler.dense", "query", "value"])
    nan = np.nan
    np.testing.assert_array_equal(grid, [[nan, 1, 2], [nan, nan, 3], [9, nan, nan]])


def test_encoder_and_decoder_have_their_own_rows() -> None:
    grid, rows, _ = parts({"encoder.layers.0.q": 1, "decoder.layers.0.q": 2})
    assert rows == ["encoder.layers.0", "decoder.layers.0"]
    np.testing.assert_array_equal(grid, [[1], [2]])
