"""The report of a study: one HTML page that loads nothing, its numbers as JSON and CSV, and its figures as files."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.figures.study import (
    curves_figure,
    differences_figure,
    learning_rates_figure,
    rank_figure,
    trade_off_figure,
    words,
)
from lora_lightning.metrics.direction import is_logarithm
from lora_lightning.reports.claim_rows import claim_rows
from lora_lightning.reports.drawing import inline_svg, svg_text
from lora_lightning.reports.files import ReportFigure, write_report_files
from lora_lightning.reports.study_json import json_text, study_as_json
from lora_lightning.reports.verdict_rows import chance_sentence, shown_value_unit, verdict_rows
from lora_lightning.statistics.analysis import StudyAnalysis
from lora_lightning.statistics.study_results import Scale, StudyResults
from lora_lightning.statistics.verdicts import shown_margin, shown_number, variance_sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Further = tuple[str, str, str, Callable[[StudyResults, str], "Figure"], str]
MOST_FIGURES = 16  # of measurements and curves; a table may have hundreds of columns


def write_study_report(results: StudyResults, analysis: StudyAnalysis, folder: Path, notes: Sequence[str] = ()) -> Path:
    """Writes the report of a study.

    Args:
        results: What it measured.
        analysis: Its verdicts.
        folder: Where to; created if it does not exist. Files of an earlier report are replaced, others are left alone.
        notes: Sentences on what was left out.

    Returns:
        The page, `report.html`. Beside it are `analysis.json`, `results.csv` and the folder `figures`.

    Raises:
        DataError: If a file cannot be written.
    """
    figures = study_figures(results, analysis)
    drawn = [svg_text(each.figure) for each in figures]
    contents = {
        "results.csv": results_csv(results).encode(),
        "analysis.json": json_text(study_as_json(results, analysis, notes)).encode(),
        "report.html": study_page(results, analysis, figures, drawn, notes).encode(),
    }
    write_report_files(folder, contents, figures, drawn)
    return folder / "report.html"


def study_figures(results: StudyResults, analysis: StudyAnalysis) -> list[ReportFigure]:
    """Draws the figures that the results have data for.

    Args:
        results: What the study measured.
        analysis: Its verdicts.

    Returns:
        The figures; at most 16 of measurements and curves.
    """
    found: list[ReportFigure] = []
    metric, reference = words(results.metric.name), results.reference
    if any(not math.isnan(each.difference.interval.value) for each in analysis.comparisons):
        text = f"Differences from {reference} with 95 % intervals, in the order of the table of verdicts."
        found.append(ReportFigure("differences", "Differences", text, differences_figure(results, analysis)))
    if any(each.tried_rates for each in results.configurations):
        text = "The validation metric of the runs that tried learning rates, averaged over seeds; the best one of each "
        text += "configuration, by a parabola, is marked."
        found.append(ReportFigure("learning_rates", "Learning rates", text, learning_rates_figure(results)))
    if results.has_ranks and any(each.values for each in results.configurations):
        text = f"{metric} against rank, with 95 % intervals over seeds."
        found.append(ReportFigure("rank_quality", f"{metric} against rank", text, rank_figure(results)))
    for cost, front in analysis.pareto.items():
        if front:
            text = f"{metric} against {words(cost)}. On the Pareto front: {', '.join(front)}."
            figure = trade_off_figure(results, analysis, cost)
            found.append(ReportFigure(f"trade_off_{len(found)}", f"{metric} against {words(cost)}", text, figure))
    return found + [
        ReportFigure(f"{kind}_{place}", title, text, draw(results, name))
        for place, (kind, title, text, draw, name) in enumerate(_further_figures(results)[:MOST_FIGURES])
    ]


def _further_figures(results: StudyResults) -> list[Further]:
    """Measurements against rank, and curves: kind, title, description, how to draw it, and name."""
    measured = list(dict.fromkeys(name for each in results.configurations for name in each.measurements))
    measured = measured if results.has_ranks else []
    costs = [_against_rank(name) for name in measured if "/" not in name]
    metrics = [_against_rank(name) for name in measured if "/" in name]  # of splits; they may be many, so come last
    curves = dict.fromkeys(name for each in results.configurations for name in each.curves)
    return [*costs, *map(_during_training, curves), *metrics]


def _against_rank(name: str) -> Further:
    title = f"{words(name)} against rank"
    return "rank", title, f"{title}, with 95 % intervals over seeds.", rank_figure, name


def _during_training(name: str) -> Further:
    text = f"{words(name)} of every configuration during training, averaged over seeds."
    return "curve", f"{words(name)} during training", text, curves_figure, name


def _left_out_figures(results: StudyResults) -> str:
    left_out = len(_further_figures(results)) - MOST_FIGURES
    return (
        f"{left_out} more figures of measurements are not drawn; results.csv has their numbers." if left_out > 0 else ""
    )


def study_page(
    results: StudyResults,
    analysis: StudyAnalysis,
    figures: Sequence[ReportFigure],
    drawn: Sequence[str],
    notes: Sequence[str] = (),
) -> str:
    """Renders the page.

    Args:
        results: What the study measured.
        analysis: Its verdicts.
        figures: Its figures.
        drawn: Each figure as SVG.
        notes: Sentences on what was left out.

    Returns:
        HTML that loads nothing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("lora_lightning.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    metric = results.metric
    pairs = [
        (pair.first, pair.second, shown_number(metric.shown_difference(pair.difference.interval.value), metric))
        for pair in analysis.pairs
        if pair.told_apart
    ]
    return environment.get_template("study.html.jinja").render(
        results=results,
        analysis=analysis,
        rows=verdict_rows(results, analysis),
        value_unit=shown_value_unit(metric),
        margin=shown_margin(metric),
        better="larger" if metric.higher_is_better else "smaller",
        chance=chance_sentence(analysis),
        pairs=pairs,
        claims=claim_rows(analysis.claims, metric),
        sentences=[(each.sentence, variance_sentence(each.difference)) for each in analysis.comparisons],
        notes=[note for note in dict.fromkeys([results.unfinished, *notes, _left_out_figures(results)]) if note],
        figures=[
            (each.title, each.description, Markup(inline_svg(svg, f"figure{place}", each.description)))  # noqa: S704
            for place, (each, svg) in enumerate(zip(figures, drawn, strict=True))
        ],
    )


def results_csv(results: StudyResults) -> str:
    """Formats the runs of a study as a table that `study audit` reads; without outcomes of test examples.

    Args:
        results: What the study measured.

    Returns:
        CSV with one row per run.
    """
    metric = results.metric.name
    if results.metric.scale is Scale.LOG and not is_logarithm(metric):
        metric = f"log_{metric}"  # what the values are
    settings = list(dict.fromkeys(name for each in results.configurations for name in each.settings))
    names = list(dict.fromkeys(name for each in results.configurations for name in each.measurements))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["configuration", "seed", metric, *settings, *names])
    for each in results.configurations:
        for seed, value in each.values.items():
            numbers = [each.measurements.get(name, {}).get(seed, "") for name in names]
            writer.writerow([each.name, seed, value, *(each.settings.get(name, "") for name in settings), *numbers])
    return text.getvalue()
