"""The report of a study: one HTML page that loads nothing, its numbers as JSON and CSV, and its figures as files."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.errors import few_names
from lora_lightning.figures.study import (
    common_steps,
    curves_figure,
    differences_figure,
    learning_rates_figure,
    rank_figure,
    trade_off_figure,
    words,
)
from lora_lightning.metrics.direction import is_logarithm
from lora_lightning.reports.claim_rows import claim_rows
from lora_lightning.reports.drawing import svg_text
from lora_lightning.reports.files import (
    NUMBERS,
    PAGE,
    TABLE,
    ReportFigure,
    figures_that_fit,
    file_name,
    with_different_names,
    write_report_files,
)
from lora_lightning.reports.study_json import json_text, study_as_json
from lora_lightning.reports.verdict_rows import (
    better_first,
    chance_sentence,
    shown_value_unit,
    sign_of_differences,
    verdict_rows,
)
from lora_lightning.statistics.analysis import StudyAnalysis
from lora_lightning.statistics.pareto import NO_TEST
from lora_lightning.statistics.study_results import Scale, StudyResults
from lora_lightning.statistics.verdicts import shown_margin, variance_sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Further = tuple[str, str, str, Callable[[StudyResults, str], "Figure"], str]
INTERVALS = "with 95 % intervals over seeds where there are two or more"
PROCESS_MEMORY = (
    "On a CPU peak memory is that of the whole process, and grows with the order of runs: small differences in it mean "
    "nothing."
)
MOST_PAIRS = 300  # in the page's list
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
        DataError: If a file cannot be written, or one that no report wrote would be replaced.
    """
    figures = study_figures(results, analysis)
    drawn = [svg_text(each.figure) for each in figures]
    contents = {
        NUMBERS: json_text(study_as_json(results, analysis, notes)).encode(),
        TABLE: results_csv(results).encode(),
        PAGE: study_page(results, analysis, figures, drawn, notes).encode(),
    }
    write_report_files(folder, contents, figures, drawn)
    return folder / PAGE


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
        text = f"Differences from {reference} with 95 % intervals where there are any, in the order of the table of "
        text += "verdicts."
        found.append(ReportFigure("differences", "Differences", text, differences_figure(results, analysis)))
    if any(each.tried_rates for each in results.configurations):
        text = "The validation metric of the runs that tried learning rates, averaged over seeds. A triangle marks the "
        text += "vertex of the parabola through the best rate of a configuration and its neighbors; hollow: the best "
        text += "rate has no neighbor on one side. Tested is a rate that was tried. Rates that are far worse "
        text += "than the best ones may lie beyond the axis."
        found.append(ReportFigure("learning_rates", "Learning rates", text, learning_rates_figure(results)))
    if results.has_ranks and any(each.values for each in results.configurations):
        text = f"{metric} against rank, {INTERVALS}."
        found.append(ReportFigure("rank_quality", f"{metric} against rank", text, rank_figure(results)))
    for cost, front in analysis.pareto.items():
        if front:
            text = f"{metric} against {words(cost)}. On the Pareto front: {', '.join(front)}. {NO_TEST}"
            text += f" {PROCESS_MEMORY}" if cost.startswith("peak_memory") else ""
            figure = trade_off_figure(results, analysis, cost)
            found.append(ReportFigure(file_name("trade_off", cost), f"{metric} against {words(cost)}", text, figure))
    found += [
        ReportFigure(file_name(kind, name), title, text, draw(results, name))
        for kind, title, text, draw, name in _further_figures(results)[:MOST_FIGURES]
    ]
    return with_different_names(found)


def _further_figures(results: StudyResults) -> list[Further]:
    """Measurements against rank, and curves: kind, title, description, how to draw it, and name."""
    measured = list(dict.fromkeys(name for each in results.configurations for name in each.measurements))
    measured = measured if results.has_ranks else []
    costs = [_against_rank(name) for name in measured if "/" not in name]
    metrics = [_against_rank(name) for name in measured if "/" in name]  # of splits; they may be many, so come last
    names = dict.fromkeys(name for each in results.configurations for name in each.curves)
    curves = [_during_training(name, results) for name in names]
    return [*costs, *curves, *metrics]


def _against_rank(name: str) -> Further:
    title = f"{words(name)} against rank"
    return "rank", title, f"{title}, {INTERVALS}.", rank_figure, name


def _during_training(name: str, results: StudyResults) -> Further:
    text = f"{words(name)} of every configuration during training, averaged over seeds."
    ends: list[str] = []
    apart: list[str] = []
    for each in results.configurations:
        rows = [curve for curve in each.curves.get(name, {}).values() if curve.size]
        common = len(common_steps(rows))
        if any(row.shape[1] > common for row in rows):
            (ends if common else apart).append(each.name)
    if ends:
        text += f" Drawn are the steps that all seeds have, which are not all steps: {few_names(ends)}."
    if apart:
        text += f" Each seed is drawn where seeds have no step in common: {few_names(apart)}."
    return "curve", f"{words(name)} during training", text, curves_figure, name


def _left_out_figures(results: StudyResults) -> str:
    left_out = len(_further_figures(results)) - MOST_FIGURES
    if left_out <= 0:
        return ""
    figures = "1 more figure of measurements is" if left_out == 1 else f"{left_out} more figures of measurements are"
    return f"{figures} not drawn; results.csv has their numbers."


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
        HTML that loads nothing; figures that would make it larger than 2 MB are left out, which it says.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("lora_lightning.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    metric = results.metric
    pairs = [better_first(pair, metric) for pair in analysis.pairs if pair.told_apart]
    template = environment.get_template("study.html.jinja")
    render = partial(
        template.render,
        results=results,
        analysis=analysis,
        rows=verdict_rows(results, analysis),
        value_unit=shown_value_unit(metric),
        margin=shown_margin(metric),
        better="larger" if metric.higher_is_better else "smaller",
        sign=sign_of_differences(metric),
        chance=chance_sentence(analysis),
        pairs=pairs[:MOST_PAIRS],
        all_pairs=len(pairs),
        claims=claim_rows(analysis.claims, metric),
        sentences=[(each.sentence, variance_sentence(each.difference)) for each in analysis.comparisons],
        names=[each.name for each in figures],
    )
    notes = [note for note in dict.fromkeys([results.unfinished, *notes, _left_out_figures(results)]) if note]
    fitting, note = figures_that_fit(figures, drawn, len(render(notes=notes, figures=[]).encode()))
    return render(notes=[*notes, note] if note else notes, figures=[each for each in fitting if each is not None])


def results_csv(results: StudyResults) -> str:
    """Formats the runs of a study as a table that `study audit` reads; without outcomes of test examples.

    Args:
        results: What the study measured.

    Returns:
        CSV with one row per run; the metric of one that failed is empty, since an audit has to know of it. A setting
        that is called like another column becomes `axis.NAME`, and a measurement that is called like the metric
        becomes `measured.NAME`.
    """
    metric = results.metric.name
    if results.metric.scale is Scale.LOG and not is_logarithm(metric):
        metric = f"log_{metric}"  # what the values are
    settings = list(dict.fromkeys(name for each in results.configurations for name in each.settings))
    names = list(dict.fromkeys(name for each in results.configurations for name in each.measurements))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    taken = {"configuration", "seed", metric, *names}
    named = [f"axis.{name}" if name in taken else name for name in settings]
    columns = [f"measured.{name}" if name == metric else name for name in names]
    writer.writerow(["configuration", "seed", metric, *named, *columns])
    for each in results.configurations:
        for seed, value in [*each.values.items(), *((seed, "") for seed in each.failed_seeds)]:
            numbers = [each.measurements.get(name, {}).get(seed, "") for name in names]
            writer.writerow([each.name, seed, value, *(each.settings.get(name, "") for name in settings), *numbers])
    return text.getvalue()
