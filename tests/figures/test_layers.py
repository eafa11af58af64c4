"""Maps of layers: each module has a cell of its own."""

import numpy as np

from lora_lightning.figures.layers import layer_map_figure


def test_encoder_and_decoder_have_cells_of_their_own() -> None:
    values = {
        f"model.{stack}.layers.{layer}.q_proj": number + layer
        for stack, number in (("encoder", 10), ("decoder", 90))
        for layer in (0, 1)
    }
    figure = layer_map_figure(values | {"model.head": 5.0}, "utilization")
    axes = figure.axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1", "other"]
    drawn = axes.images[0].get_array()
    assert drawn is not None
    assert np.nansum(drawn) == sum(values.values()) + 5
    assert [text.get_text() for text in axes.texts] == ["10", "11", "90", "91", "5.0"]


def test_one_stack_has_the_numbers_of_its_layers_in_order() -> None:
    figure = layer_map_figure({f"encoder.layer.{layer}.query": float(layer) for layer in (10, 2, 0)}, "norms")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "2", "10"]
