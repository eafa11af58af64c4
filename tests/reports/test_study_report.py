"""The report of a study: complete, offline, escaped, small, and readable on a phone."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from lora_lightning.errors import DataError
from lora_lightning.figures.study import differences_figure, rank_figure, separate_ticks, trade_off_figure
from lora_lightning.reports.claim_rows import claim_rows
from lora_lightning.reports.study_json import study_as_json
from lora_lightning.reports.study_report import results_csv, study_figures, study_page, write_study_report
from lora_lightning.reports.verdict_rows import chance_sentence, verdict_rows
from lora_lightning.statistics.analysis import analyze_study
from lora_lightning.statistics.claims import Claim, Quantity
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults
from lora_lightning.statistics.verdicts import Verdict
from lora_lightning.studies import audit_results
from tests.statistics.studies import rank_study

RESULTS = Path(__file__).parents[2] / "docs" / "results"
HOSTILE = "_<script>alert(1)</script> $\\frac{1}{0}$ \x1b[31m & \"quoted\" 'r' {{ 7 * 7 }} \u6c34"


class Page(HTMLParser):
    """Collects ids, tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in {"src", "href", "xlink:href", "action", "data"}:
                self.addresses.append(str(value))
            elif name == "aria-label":
                self.labels.append(str(value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study of ranks."""
    study = rank_study(seeds=3, examples=300)
    found = tmp_path_factory.mktemp("report") / "new" / "folder"
    write_study_report(replace(study, unfinished="3 of 21 trials have not finished."), analyze_study(study), found)
    return found


def test_the_answer_comes_first_and_every_number_is_there(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    found = analyze_study(rank_study(seeds=3, examples=300))
    first = re.search(r'<main>\s*<p class="answer[^>]*>(.*?)</p>', text, re.DOTALL)
    assert first
    assert first[1].replace("&#39;", "'") == found.recommendation.answer
    assert "3 of 21 trials have not finished." in text
    for comparison in found.comparisons:
        assert comparison.sentence in text
    assert "% comes from seeds" in text
    assert json.loads((folder / "analysis.json").read_text())["analysis"]["recommendation"]["answer"]


def test_the_page_loads_nothing_has_unique_ids_alternatives_and_is_small(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(page.ids) == len(set(page.ids))
    assert len(page.labels) == text.count("<svg") == 10
    assert len(text) < 500_000
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text


def test_every_figure_is_a_file_too(folder: Path) -> None:
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {
        "differences",
        "rank_quality",
        "rank_rank_utilization",
        "curve_validation_accuracy",
        "trade_off_trainable_parameters",
    } <= names
    for name in names:
        ET.parse(folder / "figures" / f"{name}.svg")  # noqa: S314  # our own file
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_of_other_modules_are_no_ranks_to_compare() -> None:
    study = rank_study({64: 0.0, 8: -0.2}, seeds=3, examples=200)
    first, second = study.configurations
    assert study.has_ranks
    mixed = replace(study, configurations=[first, replace(second, beside_rank="target_modules = attention")])
    assert not mixed.has_ranks
    assert not [each.name for each in study_figures(mixed, analyze_study(mixed)) if "rank" in each.name]


def test_a_line_joins_ranks_of_the_same_modules() -> None:
    study = rank_study({64: 0.0, 8: -0.2}, seeds=3, examples=200)
    first, second = study.configurations
    others = [
        replace(each, name=f"{each.name} of attention", beside_rank="target_modules = attention")
        for each in (first, second)
    ]
    figure = rank_figure(replace(study, configurations=[first, second, *others]))
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in lines] == [[8, 64], [8, 64]]
    assert len({line.get_color() for line in lines}) == 2
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    assert "target_modules = attention" in {text.get_text() for text in legend.get_texts()}


def test_results_csv_is_a_table_that_an_audit_reads(folder: Path) -> None:
    study = rank_study(seeds=3, examples=300)
    seeds_only = replace(study, configurations=[replace(each, outcomes={}) for each in study.configurations])
    audit = audit_results(folder / "results.csv", "r = 64", metric="in_scope_accuracy", sequence=study.sequence)
    assert audit.analysis.comparisons == analyze_study(seeds_only).comparisons
    logs = replace(study, metric=Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG))
    assert next(csv.reader(io.StringIO(results_csv(logs))))[2] == "log_perplexity"


@pytest.mark.filterwarnings("error")
def test_names_of_strangers_are_escaped_everywhere(tmp_path: Path) -> None:
    study = rank_study({64: 0.0, 8: -0.2}, seeds=3, examples=200)
    first, second = study.configurations
    second = replace(
        second, name=HOSTILE, measurements={**second.measurements, HOSTILE: {0: 1.0}}, curves={HOSTILE: {}}
    )
    study = StudyResults(HOSTILE, Metric(HOSTILE), [first, second], "r = 64", (HOSTILE,))
    page = write_study_report(study, analyze_study(study), tmp_path, [HOSTILE]).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    for path in tmp_path.rglob("*.svg"):
        ET.parse(path)  # noqa: S314  # our own file


@pytest.mark.parametrize("seeds", [1, 2])
def test_studies_with_little_in_them(seeds: int, tmp_path: Path) -> None:
    alone = ConfigurationResults("only", {}, dict.fromkeys(range(seeds), 0.9))
    empty = ConfigurationResults("empty", {"r": "?"}, {})
    for rows in ([alone], [alone, empty], [empty, alone]):
        study = StudyResults("s", Metric("accuracy"), rows, "only")
        assert write_study_report(study, analyze_study(study), tmp_path).exists()


def test_figures_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    numbers = {f"number {place}": {0: 1.0} for place in range(20)}
    rows = [replace(each, measurements=numbers, curves={}) for each in study.configurations]
    study = replace(study, configurations=rows, costs=())
    assert len(study_figures(study, analyze_study(study))) == 2 + 16
    page = study_page(study, analyze_study(study), [], [])
    assert "4 more figures of measurements are not drawn" in page


def test_curves_and_costs_come_before_the_metrics_of_splits() -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    metrics = {f"val/metric {place}": {0: 1.0, 1: 0.5} for place in range(20)}
    measurements = {**metrics, "rank_utilization": {0: 0.25, 1: 0.75}}
    rows = [replace(each, measurements=measurements) for each in study.configurations]
    study = replace(study, configurations=rows, costs=())
    figures = study_figures(study, analyze_study(study))
    titles = [each.title for each in figures]
    assert titles[2:4] == ["rank utilization against rank", "validation accuracy during training"]
    assert len(titles) == 2 + 16
    axes = figures[2].figure.axes[0]
    assert axes.get_ylabel() == "rank utilization"
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[8, 0.5], [64, 0.5]])


def test_crowded_figures_have_fewer_ticks_and_labels() -> None:
    assert separate_ticks([2, 4, 8, 16, 32, 64]) == [2, 4, 8, 16, 32, 64]
    assert separate_ticks([3, 3, 3]) == [3]
    assert 5 < len(separate_ticks(list(range(1, 65)))) <= 13
    study = rank_study({rank: -0.01 * (rank % 5 > 0) for rank in range(1, 31)}, seeds=2, examples=50)
    analysis = analyze_study(study)
    labels = trade_off_figure(study, analysis, "trainable_parameters").axes[0].texts
    assert {label.get_text() for label in labels} == {*analysis.pareto["trainable_parameters"], study.reference}


def test_a_curve_is_averaged_over_seeds() -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    figure = next(each for each in study_figures(study, analyze_study(study)) if each.name.startswith("curve"))
    lines = figure.figure.axes[0].lines
    expected = [
        np.mean([curve[1] for curve in each.curves["validation accuracy"].values()], 0) for each in study.configurations
    ]
    np.testing.assert_allclose([line.get_ydata() for line in lines], expected)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    with pytest.raises(DataError, match=r"file.figures cannot be written"):
        write_study_report(study, analyze_study(study), tmp_path / "file")


@pytest.fixture
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])


@pytest.mark.usefixtures("_without_figures")
def test_files_that_no_report_wrote_are_kept(tmp_path: Path) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    for name in ("results.csv", "analysis.json", "report.html"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("the user's own")
        with pytest.raises(DataError, match=rf"{name} is there, and no report wrote it; .* choose another folder"):
            write_study_report(study, analyze_study(study), folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "the user's own"


@pytest.mark.usefixtures("_without_figures")
def test_a_report_replaces_the_former_one_also_after_a_kill(tmp_path: Path) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    write_study_report(study, analyze_study(study), tmp_path)
    (tmp_path / "report.html").unlink()  # is written last
    more = rank_study({64: 0.0, 8: 0.0}, seeds=3, examples=50)
    page = write_study_report(more, analyze_study(more), tmp_path)
    assert "3 seeds" in page.read_text()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 7


@pytest.mark.usefixtures("_without_figures")
def test_the_table_of_a_report_has_failed_runs(tmp_path: Path) -> None:
    """Its audit must not prove what the report did not."""
    study = replace(rank_study({64: 0.0, 8: 0.01}, seeds=3, examples=4000), sequence=())
    first, second = (replace(each, outcomes={}) for each in study.configurations)
    study = replace(study, configurations=[first, replace(second, failed_seeds=(3, 4))])
    expected = analyze_study(study)
    assert expected.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    write_study_report(study, expected, tmp_path)
    found = audit_results(tmp_path / "results.csv", "r = 64", metric="in_scope_accuracy").analysis
    assert [each.verdict for each in found.comparisons] == [Verdict.NOT_ENOUGH_EVIDENCE]
    assert found.recommendation.name == expected.recommendation.name == "r = 64"
    assert verdict_rows(study, expected)[1].kind == "unknown"
    assert "unknown whether the difference is noise" in chance_sentence(expected)
    assert "may be noise" not in chance_sentence(expected)


@pytest.mark.parametrize("kept", sorted(RESULTS.glob("*/report/analysis.json")), ids=lambda path: path.parts[-3])
def test_kept_reports_have_all_numbers(kept: Path) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2, examples=50)
    expected, found = study_as_json(study, analyze_study(study)), json.loads(kept.read_text())
    assert found.keys() == expected.keys()
    assert found["configurations"][0].keys() == expected["configurations"][0].keys()
    for part in ("comparisons", "pairs"):
        first, second = (each["analysis"][part][0] for each in (found, expected))
        assert first.keys() == second.keys()
        assert first["difference"].keys() == second["difference"].keys()


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page_without_scrolling_sideways(folder: Path, tmp_path: Path, width: int) -> None:
    probe = tmp_path / "probe.html"
    text = (folder / "report.html").read_text().replace("style-src", "script-src 'unsafe-inline'; style-src")
    script = (
        "document.title = [document.documentElement.scrollWidth, innerWidth, document.querySelectorAll('svg').length]"
    )
    probe.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    result = subprocess.run([*words, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\d+),(\d+),(\d+)</title>", result.stdout)
    assert title
    assert int(title[1]) <= int(title[2])
    assert int(title[3]) == 10


def test_claims_and_the_rates_that_were_tried_are_shown(tmp_path: Path) -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=3, examples=400)
    rates = {
        rate: {7: 0.9 - 0.01 * place**2, 8: 0.9 - 0.01 * (place - 0.1) ** 2}
        for place, rate in enumerate((1e-4, 1e-3, 1e-2), -1)
    }
    rows = [replace(each, tried_rates=rates) for each in study.configurations]
    claims = [
        Claim("They tie <b>", "someone", Quantity.DIFFERENCE, -20, 20),
        Claim("The rate grows", "someone else", Quantity.LEARNING_RATE_EXPONENT, 0.5, math.inf),
        Claim("Something grows", "nobody", Quantity.EXPONENT, 0, 1, measurement="unknown"),
    ]
    study = replace(study, configurations=rows, claims=claims)
    analysis = analyze_study(study)
    page = write_study_report(study, analysis, tmp_path).read_text()
    assert "They tie &lt;b&gt;" in page
    for verdict in ("PASS", "UNDECIDED"):
        assert f'claim-{verdict.lower()}">{verdict}<' in page
    assert (tmp_path / "figures" / "learning_rates.svg").is_file()
    sentences = [row.sentence for row in claim_rows(analysis.claims, study.metric)]
    assert sentences[1] == (
        "UNDECIDED: The rate grows (someone else): exponent of the best learning rate over r 0 (95 % interval 0 to 0), "
        "2 seeds, claimed at least 0.5. All seeds give the same value, so that there is no interval."
    )
    assert sentences[2].endswith("claimed 0 to 1. No run of r = 64, r = 8 has unknown, so that nothing is decided.")
    found = json.loads((tmp_path / "analysis.json").read_text())["analysis"]["claims"]
    assert [each["verdict"] for each in found] == ["PASS", "UNDECIDED", "UNDECIDED"]


def lower_is_better() -> StudyResults:
    """A loss that is lower by 0.1 than that of the reference."""
    rows = [
        ConfigurationResults(name, {}, {seed: mean + 0.001 * seed * step for seed in range(3)})
        for name, mean, step in (("full", 1.21, 1), ("lora", 1.11, 1.1))
    ]
    metric = Metric("loss", margin=0.02, higher_is_better=False, scale=Scale.PLAIN)
    return StudyResults("s", metric, rows, "full", costs=(), full_fine_tuning="full")


def test_the_sign_of_a_difference_is_said_where_lower_is_better() -> None:
    study = lower_is_better()
    page = study_page(study, analyze_study(study), [], [])
    assert "smaller is better, and a difference above 0 means better; reference full" in page
    assert "<li>lora is better than full by 0.100</li>" in page
    ranks = rank_study(seeds=3, examples=300)
    analysis = analyze_study(ranks)
    page = study_page(ranks, analysis, [], [])
    assert "larger is better; reference r = 64" in page
    told_apart = [pair for pair in analysis.pairs if pair.told_apart]
    assert told_apart
    assert all(f"is better than {'r = 2'} by" in page for _ in told_apart)  # r = 2 is the worst one


def test_a_measurement_that_is_called_like_the_metric_keeps_its_own_column() -> None:
    rows = [
        ConfigurationResults(name, {}, {0: 1.0, 1: 1.1}, measurements={"log_perplexity": {0: 7.0, 1: 8.0}})
        for name in ("a", "b")
    ]
    study = StudyResults("s", Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG), rows, "a", costs=())
    found = list(csv.DictReader(io.StringIO(results_csv(study))))
    assert found[1]["log_perplexity"] == "1.1"
    assert found[1]["measured.log_perplexity"] == "8.0"


def test_a_figure_that_no_report_drew_is_kept(tmp_path: Path) -> None:
    study = rank_study(seeds=3, examples=50)
    (tmp_path / "figures").mkdir()
    own = tmp_path / "figures" / "differences.png"
    own.write_bytes(b"of a paper")
    with pytest.raises(DataError, match=r"differences.png is there, and no report wrote it"):
        write_study_report(study, analyze_study(study), tmp_path)
    assert own.read_bytes() == b"of a paper"
    assert not (tmp_path / "report.html").exists()
    own.unlink()
    write_study_report(study, analyze_study(study), tmp_path)
    for name in ("report.html", "analysis.json"):  # killed before it wrote them, with other results than now
        (tmp_path / name).unlink()
    more = rank_study(seeds=4, examples=50)
    (tmp_path / "results.csv").unlink()
    write_study_report(more, analyze_study(more), tmp_path)
    assert (tmp_path / "report.html").exists()


def test_a_long_reference_does_not_leave_the_figure() -> None:
    names = [f"learning_rate = {rate}, max_epochs = 5, batch_size = 32" for rate in (0.002, 0.00236)]
    rows = [ConfigurationResults(name, {}, {0: 0.9 + 0.01 * place, 1: 0.91}) for place, name in enumerate(names)]
    study = StudyResults("s", Metric("accuracy"), rows, names[0], costs=())
    figure = differences_figure(study, analyze_study(study))
    figure.draw_without_rendering()
    label = figure.axes[0].xaxis.label
    assert label.get_text() == "difference from learning_rate = 0.002, max_epoc\u2026, points (right is better)"
    box = label.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
