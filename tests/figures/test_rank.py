"""The pictures hold what they are given: cells, layers, curves; unusual models draw too."""

import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_lightning.figures.cards import CARD_INCHES, evenly_spaced
from lora_lightning.figures.rank import CURVES, spectra_figure, utilization_figure


def cells(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def assert_fits_its_card(figure: Figure) -> None:
    """Nothing is cut off at the width at which TensorBoard shows a picture, and letters keep their size in it."""
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    assert figure.get_figwidth() == CARD_INCHES
    box = figure.get_tightbbox(drawn.get_renderer())
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()


def llama(layers: int) -> dict[str, float]:
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "a_name_of_40_characters.that_has_to_stay")
    return {f"model.layers.{layer}.{kind}": layer / layers for layer in range(layers) for kind in kinds}


def test_rows_are_layers_columns_are_kinds_cells_are_percent() -> None:
    figure = utilization_figure({"h.0.q": 0.25, "h.0.k": 0.5, "h.10.q": 0.75, "h.2.q": 1.0, "h.2.k": 0.0}, 7)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["q", "k"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2", "10"]
    assert cells(figure) == ["25", "50", "100", "0", "75"]
    assert axes.images[0].get_array().tolist() == [[0.25, 0.5], [1.0, 0.0], [0.75, None]]
    assert "step 7" in figure.texts[0].get_text()


def test_modules_outside_numbered_layers_and_without_a_number_have_a_place() -> None:
    figure = utilization_figure({"model.layers.0.q": math.nan, "lm_head": 0.3}, 1)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "other"]
    assert cells(figure) == ["30"]


@pytest.mark.parametrize(("layers", "numbers"), [(8, 24), (80, 240), (90, 0)])
def test_cells_have_numbers_where_there_is_room(layers: int, numbers: int) -> None:
    figure = utilization_figure(llama(layers), 1)
    FigureCanvasAgg(figure).draw()
    assert len(cells(figure)) == numbers
    assert_fits_its_card(figure)


@pytest.mark.parametrize("modules", [1, 3, 7, 16])
def test_every_module_has_a_panel_and_every_measurement_a_curve(modules: int) -> None:
    history = {f"h.0.{name}": [(10, [2.0, 1.0]), (20, [3.0, 0.0])] for name in range(modules)}
    figure = spectra_figure(history)
    FigureCanvasAgg(figure).draw()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [panel.get_title() for panel in panels] == [f"0: {name}" for name in range(modules)]
    assert_fits_its_card(figure)
    assert panels[0].get_yscale() == "log"
    assert panels[0].lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert math.isnan(panels[0].lines[1].get_ydata()[1])  # nothing at 0 on a logarithmic axis
    assert "step 10 (yellow) to 20 (blue)" in figure.texts[0].get_text()


@pytest.mark.parametrize("values", [[0.0, 0.0], [math.nan, math.nan], []])
def test_an_update_without_singular_values_draws_an_empty_panel(values: list[float]) -> None:
    FigureCanvasAgg(spectra_figure({"h.0.q": [(1, values)]})).draw()


def test_long_histories_are_thinned_and_keep_both_ends() -> None:
    figure = spectra_figure({"h.0.q": [(step, [1.0 + step]) for step in range(100)]})
    steps = [line.get_ydata()[0] - 1 for line in figure.axes[0].lines]
    assert len(steps) == CURVES
    assert (steps[0], steps[-1]) == (0, 99)
    assert evenly_spaced(3, CURVES) == [0, 1, 2]
    assert evenly_spaced(0, CURVES) == []
