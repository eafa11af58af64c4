"""Figures of a report show what their captions say, and a new report replaces those of the one before."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_lightning.figures.png import png_bytes
from lora_lightning.figures.study import (
    averaged_curves,
    curves_figure,
    differences_figure,
    learning_rates_figure,
    rank_figure,
)
from lora_lightning.reports import files
from lora_lightning.reports.study_report import results_csv, study_figures, study_page, write_study_report
from lora_lightning.statistics.analysis import analyze_study
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults
from lora_lightning.studies import audit_results
from tests.statistics.studies import rank_study

ACCURACY = "validation accuracy"


def beside(curve: NDArray[np.float64]) -> list[dict[int, NDArray[np.float64]]]:
    """A curve beside one that was stopped after two steps, and beside one at other steps."""
    stopped = np.array([[1, 2], [0.6, 0.75]])
    return [{0: curve, 1: stopped}, {0: curve, 1: curve + np.array([[0.5], [0.0]])}]


def test_a_mean_curve_ends_where_a_seed_was_stopped_and_says_so() -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    pairs = zip(study.configurations, beside(study.configurations[0].curves[ACCURACY][0]), strict=True)
    study = replace(study, configurations=[replace(each, curves={ACCURACY: curves}) for each, curves in pairs])
    found = next(each for each in study_figures(study, analyze_study(study)) if each.name.startswith("curve"))
    mean, *each_seed = (line.get_xydata() for line in found.figure.axes[0].lines)
    np.testing.assert_allclose(mean, [[1, 0.6], [2, 0.8]])
    assert [len(curve) for curve in each_seed] == [4, 4]
    assert "the steps that all seeds have, which are not all steps: r = 64." in found.description
    assert "Each seed is drawn where seeds have no step in common: r = 8." in found.description
    np.testing.assert_array_equal(averaged_curves({0: np.array([[3.0], [0.5]])}), [[[3], [0.5]]])


def test_figures_show_what_their_captions_say() -> None:
    study = rank_study({64: 0.0, 8: 0.0, 2: -0.01}, seeds=3, examples=200)
    rows = [replace(study.configurations[0], name="full", rank=None), *study.configurations[1:]]
    study = replace(study, configurations=rows, reference="full", sequence=())
    axes = rank_figure(study).axes[0]
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())  # the interval of full fine-tuning
    interval = rows[0].shown_interval(study.metric)
    assert (band.y0, band.y1) == pytest.approx((interval.low, interval.high))
    assert rank_figure(study, "trainable_parameters").axes[0].get_yscale() == "log"
    assert rank_figure(study, "f1").axes[0].get_yscale() == "linear"
    margin = differences_figure(study, analyze_study(study)).axes[0]
    assert not margin.texts  # beside its line it would lie across the axis
    legend = margin.get_legend()
    assert legend
    assert "margin 0.5 points" in {text.get_text() for text in legend.get_texts()}
    found = {each.name: each.description for each in study_figures(study, analyze_study(study))}
    assert "compares means and is no test" in found["trade_off_trainable_parameters"]
    assert "that of the whole process" in found["trade_off_peak_memory_mib"]


def test_a_mean_perplexity_in_a_figure_is_that_of_the_table() -> None:
    metric = Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG)
    values = {0: math.log(2), 1: math.log(8)}
    rows = [ConfigurationResults(f"r = {rank}", {}, values, rank=float(rank)) for rank in (8, 64)]
    line = rank_figure(StudyResults("s", metric, rows, "r = 64")).axes[0].lines[0]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), [4, 4])  # and not 5
    assert math.isnan(metric.shown_value(math.nan))
    assert math.isnan(metric.shown_difference(math.nan))


@pytest.mark.parametrize("higher", [True, False])
def test_rates_that_diverged_do_not_hide_where_the_best_ones_are(higher: bool) -> None:
    scores = {1e-4: 0.86, 2e-4: 0.9, 4e-4: 0.88, 8e-4: 0.0}
    rates = {rate: {0: score if higher else 1 - score} for rate, score in scores.items()}
    row = ConfigurationResults("a", {}, {0: 0.9}, tried_rates=rates)
    study = StudyResults("s", Metric("m", higher_is_better=higher), [row], "a")
    low, high = learning_rates_figure(study).axes[0].get_ylim()
    assert high - low < 5  # percent; all of them take 90
    assert low < (90 if higher else 10) < high
    row = replace(row, tried_rates={rate: values for rate, values in rates.items() if rate < 8e-4})
    low, high = learning_rates_figure(replace(study, configurations=[row])).axes[0].get_ylim()
    assert low < (86 if higher else 10)
    assert high > (90 if higher else 14)


@pytest.mark.filterwarnings("error")
def test_a_legend_of_many_configurations_leaves_room_for_them() -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    rows = [replace(study.configurations[0], name=f"configuration {place}") for place in range(120)]
    figure = curves_figure(replace(study, configurations=rows), ACCURACY)
    png_bytes(figure)  # where matplotlib would warn that the axes have no room
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend
    assert (len(axes.lines), len(legend.get_texts())) == (120, 24)
    assert legend.get_title().get_text() == "the first 24 of 120:"
    assert axes.get_position().height > 0.3


def test_the_next_report_deletes_the_figures_of_the_one_before(tmp_path: Path) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    numbers = {"old": {0: 1.0}, "../../kept": {0: 1.0}}
    rows = [replace(each, measurements=numbers, curves={}) for each in study.configurations]
    former = replace(study, configurations=rows, costs=())
    figures = tmp_path / "report" / "figures"
    write_study_report(former, analyze_study(former), figures.parent)
    assert {"rank_old.png", "rank_old.svg", "rank_kept.svg"} <= {path.name for path in figures.iterdir()}
    (figures / "own.png").write_text("of the user")
    write_study_report(study, analyze_study(study), figures.parent)
    names = {path.stem for path in figures.iterdir()}
    assert names == {each.name for each in study_figures(study, analyze_study(study))} | {"own"}


def test_figures_of_earlier_releases_had_running_numbers(tmp_path: Path) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("trade_off_2.png", "rank_0.svg", "rank_of_mine.png"):
        (figures / name).write_text("")
    write_study_report(study, analyze_study(study), tmp_path)  # no page, so nothing is known to be a report's
    assert (figures / "rank_0.svg").exists()
    (tmp_path / "report.html").write_text("<html>")
    write_study_report(study, analyze_study(study), tmp_path)
    names = {path.name for path in figures.iterdir()}
    assert not names & {"trade_off_2.png", "rank_0.svg"}
    assert {"rank_of_mine.png", "trade_off_trainable_parameters.png"} <= names


def test_measurements_with_like_names_have_files_of_their_own() -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    numbers = {name: {0: 1.0} for name in ("a/b", "a_b", "A b")}
    rows = [replace(each, measurements=numbers, curves={}) for each in study.configurations]
    study = replace(study, configurations=rows, costs=())
    names = [each.name for each in study_figures(study, analyze_study(study))]
    assert sorted(names[2:]) == ["rank_A_b_2", "rank_a_b", "rank_a_b_3"]


def test_a_page_is_never_larger_than_two_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    whole = write_study_report(study, analyze_study(study), tmp_path / "whole").stat().st_size
    monkeypatch.setattr(files, "LARGEST_PAGE", whole * 2 // 3)
    page = write_study_report(study, analyze_study(study), tmp_path / "less")
    assert whole // 3 < page.stat().st_size <= whole * 2 // 3
    sentence = r"\d figures are only in the folder figures, since this page would be too large: \w+"
    assert re.search(sentence, page.read_text())
    first, second = (
        sorted(path.name for path in (tmp_path / name / "figures").iterdir()) for name in ("whole", "less")
    )
    assert first == second


def test_of_thousands_of_pairs_some_hundred_are_listed() -> None:
    rows = [ConfigurationResults(f"c {place}", {}, {0: place, 1: place + 1e-6 * place}) for place in range(40)]
    study = StudyResults("s", Metric("m", scale=Scale.PLAIN), rows, "c 0", costs=())
    analysis = analyze_study(study)
    told_apart = sum(pair.told_apart for pair in analysis.pairs)
    assert told_apart > 300
    page = study_page(study, analysis, [], [])
    assert page.count(" is better than c ") == 300
    assert f"more than chance ({told_apart})" in page
    assert "The first 300; analysis.json has all of them." in page


def test_a_setting_that_is_called_like_another_column_keeps_its_own(tmp_path: Path) -> None:
    numbers = {"size": {0: 1.0, 1: 1.0}}
    rows = [
        ConfigurationResults(name, {"size": name, "accuracy": name, "r": 1}, {0: 0.5, 1: 0.6}, measurements=numbers)
        for name in ("a", "b")
    ]
    path = tmp_path / "results.csv"
    path.write_text(results_csv(StudyResults("s", Metric("accuracy"), rows, "a")))
    heading = path.read_text().splitlines()[0].split(",")
    assert heading == ["configuration", "seed", "accuracy", "axis.size", "axis.accuracy", "r", "size"]
    assert audit_results(path, "a", metric="accuracy").results.reference == "a"


def test_a_printed_page_shows_all_columns_and_what_is_folded() -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    page = study_page(study, analyze_study(study), [], [])
    style = page.partition("@media print {")[2].partition("</style>")[0]
    assert ".scroll { overflow: visible; background: none; }" in style
    assert "white-space: normal" in style
    assert "details::details-content { content-visibility: visible" in style
