"""Audits of made-up tables, compared with SciPy's paired t test; every kind of broken table is refused or counted."""

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy import stats

from lora_lightning.cli.main import main
from lora_lightning.errors import LoraLightningError
from lora_lightning.reports.study_report import results_csv
from lora_lightning.statistics.analysis import analyze_study
from lora_lightning.statistics.study_results import Metric, Scale
from lora_lightning.statistics.verdicts import Verdict
from lora_lightning.studies import audit_results
from tests.conftest import SHARED_DATA
from tests.statistics.studies import rank_study

LARGE, SMALL = [0.951, 0.947, 0.950], [0.950, 0.948, 0.951]
Columns = dict[str, list[Any]]


def two_configurations(**changes: list[Any]) -> Columns:
    """Three seeds of r = 64 and of r = 8."""
    return {
        "configuration": ["r = 64"] * 3 + ["r = 8"] * 3,
        "seed": [0, 1, 2] * 2,
        "accuracy": [*LARGE, *SMALL],
        **changes,
    }


def save_csv(columns: Columns, path: Path) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def test_a_table_gets_the_paired_t_tests_verdict(tmp_path: Path) -> None:
    audit = audit_results(save_csv(two_configurations(), tmp_path / "results.csv"), "r = 64")
    found = audit.analysis.comparisons[0]
    test = stats.ttest_rel(SMALL, LARGE)
    assert found.difference.interval.value == pytest.approx(np.mean(SMALL) - np.mean(LARGE))
    assert found.difference.interval.low == pytest.approx(test.confidence_interval(0.95).low)
    assert found.p_value == pytest.approx(stats.ttest_rel(np.add(SMALL, 0.005), LARGE, alternative="greater").pvalue)
    assert found.verdict is Verdict.NOT_WORSE
    assert audit.results.name == "results"
    assert audit.notes == ()


def test_a_study_saved_as_a_table_gets_its_own_verdicts(tmp_path: Path) -> None:
    study = rank_study(seeds=3, examples=300)
    rows = [(each, seed) for each in study.configurations for seed in each.values]
    columns: Columns = {
        "configuration": [each.name for each, _ in rows],
        "seed": [seed for _, seed in rows],
        "in_scope_accuracy": [each.values[seed] for each, seed in rows],
        "model.lora.r": [each.settings["model.lora.r"] for each, _ in rows],
        "trainable_parameters": [each.measurements["trainable_parameters"][seed] for each, seed in rows],
    }
    outcomes = np.array([each.outcomes[seed] for each, seed in rows])
    columns |= {f"example_{place}": list(outcomes[:, place]) for place in range(300)}
    expected = analyze_study(study)
    for path in (save_csv(columns, tmp_path / "a.csv"), tmp_path / "a.parquet"):
        if path.suffix == ".parquet":
            parquet.write_table(pa.table(columns), path)
        found = audit_results(path, "r = 64", sequence=study.sequence)
        assert found.analysis.comparisons == expected.comparisons
        assert found.analysis.recommendation == expected.recommendation
        assert found.results.configuration("r = 8").rank == 8
        assert found.results.configuration("r = 8").settings == {"model.lora.r": 8.0}


@pytest.mark.parametrize("scale", ["fraction", "percent"])
def test_fractions_and_percent_are_told_apart_by_their_values(scale: str) -> None:
    factor = 100 if scale == "percent" else 1
    columns = two_configurations(accuracy=[factor * value for value in [*LARGE, *SMALL]])
    audit = audit_results(columns, "r = 64")
    assert audit.results.configuration("r = 8").mean_value == pytest.approx(np.mean(SMALL))
    assert audit.results.metric.stored_margin == pytest.approx(0.005)


def test_percent_with_hits_of_one_or_of_a_hundred() -> None:
    hits = np.random.default_rng(0).integers(0, 2, (6, 40))
    for factor in (1, 100):
        columns = two_configurations(accuracy=list(100 * hits.mean(axis=1)))
        columns |= {f"example_{place}": list(factor * hits[:, place]) for place in range(40)}
        found = audit_results(columns, "r = 64").analysis.comparisons[0].difference
        assert found.examples == 40
        assert found.interval.value == pytest.approx(hits[3:].mean() - hits[:3].mean())


def test_perplexity_is_compared_by_its_logarithm() -> None:
    columns = two_configurations()
    columns["test perplexity"] = [20.0, 19.8, 19.9, 20.1, 19.9, 20.02]
    del columns["accuracy"]
    audit = audit_results(columns, "r = 64")
    logs = np.log(columns["test perplexity"])
    assert audit.results.metric.scale is Scale.LOG
    assert not audit.results.metric.higher_is_better
    found = audit.analysis.comparisons[0].difference
    assert found.interval.low == pytest.approx(stats.ttest_rel(logs[:3], logs[3:]).confidence_interval(0.95).low)
    assert audit.results.metric.margin == 1.0


@pytest.mark.parametrize("name", ["out_of_scope_f1_at_threshold", "domain_accuracy/travel", "f1_macro"])
def test_longer_names_of_shares_have_margins_in_points(name: str) -> None:
    """A loss of 30 points is no proof with a margin of 0.5, which would be 50 points of a plain number."""
    columns = two_configurations(**{name: [0.951, 0.947, 0.95, 0.65, 0.648, 0.651]})
    del columns["accuracy"]
    audit = audit_results(columns, "r = 64", direction="higher", margin=0.5)
    assert audit.results.metric.stored_margin == pytest.approx(0.005)
    assert audit.analysis.comparisons[0].verdict is Verdict.WORSE


def test_an_unknown_metric_between_minus_1_and_1_needs_a_scale() -> None:
    columns = two_configurations(word_error_rate=[0.15, 0.16, 0.155, 0.3, 0.312, 0.304])
    asked: dict[str, Any] = {"metric": "word_error_rate", "direction": "lower", "margin": 0.5}
    with pytest.raises(LoraLightningError, match=r"'word_error_rate'.*give the scale fraction or plain"):
        audit_results(columns, "r = 64", **asked)
    found = audit_results(columns, "r = 64", scale="fraction", **asked)
    assert found.analysis.comparisons[0].verdict is Verdict.WORSE
    columns["word_error_rate"] = [100 * cell for cell in columns["word_error_rate"]]
    assert audit_results(columns, "r = 64", **asked).results.metric.scale is Scale.PLAIN


def test_a_share_of_errors_that_may_be_percent_is_noted() -> None:
    columns = two_configurations(calibration_error=[0.8, 0.82, 0.81, 0.9, 0.91, 0.92])
    (note,) = audit_results(columns, "r = 64", metric="calibration_error").notes
    assert "read as fractions, so that 0.92 is 92 %; if they are percent, give the scale percent" in note
    for scale in ("fraction", "percent"):
        assert not audit_results(columns, "r = 64", metric="calibration_error", scale=scale).notes
    columns["calibration_error"] = [cell / 10 for cell in columns["calibration_error"]]
    assert not audit_results(columns, "r = 64", metric="calibration_error").notes


def test_fractions_that_are_given_as_percent_are_noted() -> None:
    columns = two_configurations(accuracy=[0.95, 0.952, 0.951, 0.9, 0.91, 0.92])
    notes = audit_results(columns, "r = 64", metric="accuracy", scale="percent").notes
    assert any("read as percent, as given, so that 0.952 is 0.952 % and not 95.2 %" in note for note in notes)
    assert not audit_results(columns, "r = 64", metric="accuracy", scale="fraction").notes


@pytest.mark.parametrize("name", ["dialog_perplexity", "logit_perplexity"])
def test_log_within_a_word_is_no_logarithm(name: str) -> None:
    columns = two_configurations(**{name: [2000.0, 2010.0, 2005.0, 2100.0, 2110.0, 2104.0]})
    audit = audit_results(columns, "r = 64", metric=name)
    assert audit.results.configuration("r = 64").mean_value == pytest.approx(math.log(2005), abs=1e-3)
    assert results_csv(audit.results).startswith(f"configuration,seed,log_{name},")


def test_logarithms_that_are_none_and_of_another_base_are_refused() -> None:
    columns = two_configurations(log_perplexity=[2000.0] * 6, log2_perplexity=[4.3] * 6)
    with pytest.raises(LoraLightningError, match=r"range from 2000 to 2000.*not possible for the scale log"):
        audit_results(columns, "r = 64", metric="log_perplexity")
    with pytest.raises(LoraLightningError, match=r"base 2.*multiply its values by 0.693147"):
        audit_results(columns, "r = 64", metric="log2_perplexity")
    metric = Metric("log_perplexity", 1.0, higher_is_better=False, scale=Scale.LOG)
    assert metric.shown_value(2000) == math.inf
    assert metric.shown_difference(-2000) == -math.inf


def test_a_loss_needs_a_margin_and_an_unknown_metric_a_direction() -> None:
    columns = two_configurations()
    columns["loss"] = columns.pop("accuracy")
    assert not audit_results(columns, "r = 64", margin=0.1).results.metric.higher_is_better
    columns["score"] = columns.pop("loss")
    found = audit_results(columns, "r = 64", margin=0.1, direction="higher", scale="plain").results.metric
    assert (found.name, found.higher_is_better, found.scale) == ("score", True, Scale.PLAIN)


def test_costs_and_other_columns() -> None:
    columns = two_configurations(
        trainable_parameters=[800] * 3 + [100] * 3,
        memory=[5, 6, 7, 1, 2, 3],
        method=["full"] * 3 + ["lora"] * 3,
        comment=["", "a", "b", "c", "d", ""],
    )
    audit = audit_results(columns, "r = 64", costs=["memory", "trainable_parameters"])
    assert audit.analysis.recommendation.name == "r = 8"
    assert "2 memory" in audit.analysis.recommendation.answer
    assert audit.results.configuration("r = 8").settings == {"method": "lora"}
    assert audit.notes == ("Columns of texts that differ within a configuration are not used: comment.",)
    assert audit_results(columns, "r = 64").results.costs == ["trainable_parameters"]


def test_a_column_that_may_be_meant_instead_of_the_metric_is_named() -> None:
    columns = two_configurations(seconds=[5, 6, 7, 1, 2, 3], alpha=[128] * 3 + [16] * 3, loss=["dpo"] * 6)
    expected = "'accuracy' is judged, the only column with the name of a known metric, and not seconds."
    assert audit_results(columns, "r = 64").notes == (expected,)
    assert audit_results(columns, "r = 64", metric="accuracy").notes == ()
    columns["Validation accuracy"] = columns.pop("accuracy")
    del columns["seconds"]
    audit = audit_results(columns, "r = 64")
    assert audit.results.metric.name == "Validation accuracy"
    assert audit.notes[0].startswith("'Validation accuracy' is judged, which is no test result by its name")


def test_a_share_of_errors_whose_name_ends_like_a_metric_may_be_lower_is_better() -> None:
    columns = two_configurations(inaccuracy=[0.05, 0.051, 0.052, 0.15, 0.152, 0.151])
    del columns["accuracy"]
    audit = audit_results(columns, "r = 64", direction="lower", scale="fraction")
    assert audit.analysis.comparisons[0].verdict is Verdict.WORSE


def test_where_the_metric_is_in_the_table_of_a_report_is_said() -> None:
    further = {f"test/{name}": [0.5] * 6 for name in ("f1", "auroc", "precision", "recall")}
    with pytest.raises(LoraLightningError, match=r"name the one that decides \(--metric\); .* third column, here acc"):
        audit_results(two_configurations(**further), "r = 64")


@pytest.mark.parametrize("cell", ["", "NaN"])
def test_a_configuration_whose_runs_failed_is_not_recommended(cell: str) -> None:
    """The other half of its runs is as good as the reference's; the failed ones were perhaps chosen by their result."""
    columns = two_configurations(
        configuration=["r = 64"] * 6 + ["r = 8"] * 6,
        seed=[*range(6)] * 2,
        accuracy=[*LARGE, *LARGE, *SMALL, cell, cell, cell],
        trainable_parameters=[800] * 6 + [100] * 6,
    )
    analysis = audit_results(columns, "r = 64").analysis
    assert analysis.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "3 of 6 runs of r = 8 failed or have no result" in analysis.comparisons[0].sentence
    assert (analysis.recommendation.name, analysis.recommendation.proven) == ("r = 64", False)
    columns["accuracy"] = [*LARGE, *LARGE, *SMALL, *SMALL]
    assert audit_results(columns, "r = 64").analysis.recommendation.name == "r = 8"


def test_a_size_that_differs_within_a_configuration_is_named() -> None:
    audit = audit_results(two_configurations(trainable_parameters=[800, 800, "", 100, 100, 6400]), "r = 64")
    assert "'trainable_parameters' differs between the runs of a configuration" in audit.notes[-1]
    assert "counts: 'r = 8' (from 100 to 6400)." in audit.notes[-1]


@pytest.mark.parametrize("cell", ["", "NaN", "inf", "-inf", "n/a", None, math.nan])
def test_a_run_without_a_result_is_counted(cell: object) -> None:
    audit = audit_results(two_configurations(accuracy=[*LARGE, *SMALL[:2], cell]), "r = 64")
    assert audit.notes[0] == audit.results.unfinished
    assert "1 of 6 runs have no finite accuracy and are left out" in audit.notes[0]
    assert "'r = 8' with seed 2" in audit.notes[0]
    assert audit.notes[1].startswith("1 configuration has other seeds than the reference")
    assert audit.analysis.comparisons[0].unpaired_seeds == (2,)
    assert audit.analysis.comparisons[0].difference.seeds == 2


def test_a_margin_beyond_any_sense_is_noted() -> None:
    columns = two_configurations(accuracy=[0.91, 0.912, 0.909, 0.51, 0.512, 0.508])
    assert "The margin is 60 points: a configuration" in audit_results(columns, "r = 64", margin=60.0).notes[0]
    assert not audit_results(columns, "r = 64", margin=10.0).notes
    losses = two_configurations(loss=[2.0, 2.1, 2.2, 2.1, 2.0, 2.15])
    assert "The margin is 0.3: " in audit_results(losses, "r = 64", metric="loss", margin=0.3).notes[0]
    for margin in (0.15, 0.2):
        assert not audit_results(losses, "r = 64", metric="loss", margin=margin).notes


@pytest.mark.parametrize("margin", [1e-4, 1e-9])
def test_a_margin_that_nothing_can_prove_ends_in_a_sentence(margin: float) -> None:
    found = audit_results(two_configurations(), "r = 64", margin=margin).analysis.comparisons[0]
    assert found.missing.startswith("far more seeds and test examples than a study can have, or a larger margin")


def test_equal_differences_are_no_test_of_their_rounding() -> None:
    values = [1000.1, 2000.1, 3000.1, 1000.2, 2000.2, 3000.2]
    columns = two_configurations(mean_squared_error=values)
    for margin in (0.05, 0.5):
        found = audit_results(columns, "r = 64", metric="mean_squared_error", margin=margin).analysis.comparisons[0]
        assert found.verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_seeds_that_do_not_pair_are_counted_and_none_in_common_is_no_evidence() -> None:
    audit = audit_results(two_configurations(seed=[0, 1, 2, 2, 1, 7]), "r = 64")
    assert "'r = 8' (seeds 0, 7)" in audit.notes[0]
    assert audit.analysis.comparisons[0].difference.seeds == 2
    nothing = audit_results(two_configurations(seed=[0, 1, 2, 3, 4, 5]), "r = 64")
    assert nothing.analysis.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_all_runs_of_the_reference_failed() -> None:
    audit = audit_results(two_configurations(accuracy=["nan"] * 3 + SMALL), "r = 64")
    assert audit.analysis.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_runs_without_test_examples_are_counted() -> None:
    examples = {"example_a": [1, 1, 1, 1, 0, ""], "Example 2": [0, 0, 1, 1, 1, ""]}
    columns = two_configurations(accuracy=[0.5, 0.5, 1.0, 1.0, 0.5, 0.7], **examples)
    audit = audit_results(columns, "r = 64")
    assert audit.notes == ("1 of 6 runs have no test examples and are compared by seed only: 'r = 8' with seed 2.",)
    assert audit.analysis.comparisons[0].difference.examples == 0


def test_names_and_cells_lose_surrounding_spaces_and_seeds_may_be_written_as_floats() -> None:
    columns = two_configurations()
    changed = {f" {name}": [f" {cell} " for cell in cells] for name, cells in columns.items()}
    changed[" seed"] = ["0.0", "1.0", "2.0"] * 2
    assert audit_results(changed, "r = 64").analysis == audit_results(columns, "r = 64").analysis
    assert audit_results({"": list(range(6)), **columns}, "r = 64").notes == ()  # an index that pandas wrote


BROKEN: list[tuple[str, Columns, dict[str, Any], str]] = [
    ("no reference", two_configurations(), {"reference": "r = 7"}, "no configuration 'r = 7'"),
    ("no seed", {"configuration": ["a"], "accuracy": [1]}, {}, "no column 'seed'"),
    ("no configuration", {"config": ["a"], "seed": [1], "accuracy": [1]}, {}, "did you mean 'config'"),
    ("no metric", {"configuration": ["a"], "seed": [1]}, {}, "no column with a metric"),
    ("two metrics", two_configurations(f1=[0.5] * 6), {}, "2 columns that could be the metric .accuracy, f1"),
    ("unknown metric", two_configurations(), {"metric": "acuracy"}, "did you mean 'accuracy'"),
    ("test has OOM", two_configurations(test_accuracy=[*LARGE, 1, 1, "OOM"]), {}, "2 columns that could be the metric"),
    ("test in %", two_configurations(test_accuracy=["95.1%"] * 6), {}, "2 columns .* .accuracy, test_accuracy"),
    ("in % alone", two_configurations(accuracy=["95.1%"] * 6), {}, "row 1.*'95.1%'; write it without %, as 95.1"),
    ("comma", two_configurations(accuracy=["0,951"] * 6), {}, "'0,951'; write it with a decimal point, as 0.951$"),
    ("either", two_configurations(accuracy=["2,359"] * 6), {}, "point, as 2.359, or without a .* thousands, as 2359"),
    (
        "thousands",
        two_configurations(trainable_parameters=["2,359,296"] * 6),
        {},
        "'2,359,296'; write it without separators of thousands, as 2359296",
    ),
    (
        "bits",
        two_configurations(precision=[32] * 3 + [16] * 3, bleu=LARGE * 2, accuracy=["-"] * 6),
        {},
        "precision, bleu",
    ),
    (
        "one seed",
        {"configuration": ["r = 64", "b"], "seed": [0, 0], "precision": [32, 16], "bleu": [31.5, 33.2]},
        {},
        r"2 columns that could be the metric \(precision, bleu\); name the one that decides \(--metric\)",
    ),
    (
        "errors",
        two_configurations(inaccuracy=[*LARGE, *SMALL], accuracy=["-"] * 6),
        {},
        "'inaccuracy'.*give the scale",
    ),
    (
        "all trials",
        two_configurations(is_tested=[True] * 5 + ["False"]),
        {},
        "row 6: .*give the results.csv of its report",
    ),
    (
        "score or text",
        {**two_configurations(score=[1, 2, 3, 4, 5, "x"], cpu=LARGE * 2), "accuracy": [""] * 6},
        {},
        "score",
    ),
    (
        "val or mcc",
        {
            "val_f1" if name == "accuracy" else name: cells
            for name, cells in two_configurations(mcc=[*LARGE, *SMALL]).items()
        },
        {},
        "val_f1, mcc",
    ),
    ("unknown cost", two_configurations(), {"costs": ["flops"]}, "no column 'flops' for a cost"),
    ("text in metric", two_configurations(accuracy=[*LARGE, 1, 1, "high"]), {"metric": "accuracy"}, "row 6.*'high'"),
    ("text in cost", two_configurations(cost=[1, 2, 3, 4, 5, "x"]), {"costs": ["cost"]}, "row 6.*'x'"),
    ("duplicate", two_configurations(seed=[0, 1, 2, 0, 1, 1]), {}, "row 6: 'r = 8' with seed 1 is already in row 5"),
    ("seed is text", two_configurations(seed=[0, 1, 2, 0, 1, "x"]), {}, "row 6: the seed must be a whole number"),
    ("seed is a half", two_configurations(seed=[0, 1, 2, 0, 1, 0.5]), {}, "'0.5'"),
    ("seed is empty", two_configurations(seed=[0, 1, 2, 0, 1, ""]), {}, "is empty"),
    ("seed is infinite", two_configurations(seed=[0, 1, 2, 0, 1, "inf"]), {}, "'inf'"),
    ("nameless", two_configurations(configuration=["r = 64"] * 5 + [""]), {}, "row 6: the configuration has no name"),
    ("column twice", {**two_configurations(), " seed": [1] * 6}, {}, "'seed' occurs twice"),
    ("nameless column", {**two_configurations(), "": [1] * 6}, {}, "column 4 has no name"),
    ("half an example", two_configurations(example_1=[1, 1, 1, 1, 1, ""], example_2=[1] * 6), {}, "row 6: 'example_1'"),
    ("other mean", two_configurations(example_1=[1] * 6, example_2=[0] * 6), {}, "mean of the 2 test examples is 0.5"),
    (
        "small numbers of another mean",
        {
            "configuration": ["a"] * 2 + ["b"] * 2,
            "seed": [0, 1] * 2,
            "mean_squared_error": [5e-4, 5e-4, 9e-4, 9e-4],
            "example_1": [1e-4, 5e-4, 0, 0],
            "example_2": [3e-4, 5e-4, 0, 0],
        },
        {"reference": "a", "margin": 1e-4},
        "row 1: the mean of the 2 test examples is 0.0002, but the metric is 0.0005",
    ),
    (
        "off by a fifth of the margin",
        two_configurations(accuracy=[0.501, 0.5, 0.5] * 2, example_1=[1] * 6, example_2=[0] * 6),
        {},
        "examples is 0.5, but the metric is 0.501; give it with more digits if it is rounded",
    ),
    ("infinite", two_configurations(loss=[1e200] * 6), {"metric": "loss", "margin": 1.0}, r"row 1: 'loss' is 1e\+200"),
    ("mixed scales", two_configurations(accuracy=[95.1, 94.7, 95, 0.95, 94, 95]), {}, "looks like a fraction"),
    ("above 100", two_configurations(accuracy=[951, 947, 95, 95, 94, 95]), {}, "range from 94 to 951"),
    ("perplexity 0", two_configurations(perplexity=[0] * 6), {"metric": "perplexity"}, "not possible"),
    ("margin 0", two_configurations(), {"margin": 0.0}, "above 0"),
    ("margin nan", two_configurations(), {"margin": math.nan}, "above 0"),
    ("direction", two_configurations(), {"direction": "up"}, "higher or lower"),
    ("wrong direction", two_configurations(), {"direction": "lower"}, "contradicts 'accuracy'"),
    ("scale", two_configurations(), {"scale": "points"}, "the scales are fraction"),
    ("no direction", two_configurations(score=[1] * 6), {"metric": "score", "scale": "plain"}, "larger 'score'"),
    ("no margin", two_configurations(loss=[1] * 6), {"metric": "loss"}, "'loss' has no usual margin"),
    ("sequence", two_configurations(), {"sequence": ["r = 8", "r = 8"]}, "once"),
    ("no rows", {"configuration": [], "seed": [], "accuracy": []}, {}, "at least one row"),
]


@pytest.mark.parametrize(("columns", "options", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_what_is_wrong_is_one_sentence(columns: Columns, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoraLightningError, match=message):
        audit_results(columns, **{"reference": "r = 64"} | options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "needs|no rows|no column"),
        (b"configuration,seed,accuracy\n", "no rows"),
        (b"configuration;seed;accuracy\na;0;0.9\n", "';' between the names where ',' is needed"),
        (b"configuration,seed,accuracy\na,0\n", "line 2: 2 columns where 3 are needed"),
        (b"configuration,seed,accuracy\n\xff,0,1\n", "not UTF-8"),
        (b"configuration,seed,seed\na,0,1\n", "'seed' occurs twice"),
        (b"configuration,seed,accuracy\na,0,0\x00\n", "'0.x00' ?|must be a number"),
    ],
)
def test_files_that_are_no_tables(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoraLightningError, match=message):
        audit_results(path, "a", metric="accuracy")


def bag_of_words_hits(words: int, seed: int, rows: list[tuple[str, int]], dev: list[tuple[str, int]]) -> np.ndarray:
    """Hits on SST-2's dev set of a linear classifier of word counts, trained on a seed's sample of rows."""
    from sklearn.feature_extraction.text import CountVectorizer  # noqa: PLC0415
    from sklearn.linear_model import SGDClassifier  # noqa: PLC0415

    sample = [rows[place] for place in np.random.default_rng(seed).choice(len(rows), 3000, replace=False)]
    counts = CountVectorizer(max_features=words, binary=True)
    model = SGDClassifier(random_state=seed, alpha=1e-3)
    model.fit(counts.fit_transform([text for text, _ in sample]), [label for _, label in sample])
    predictions = model.predict(counts.transform([text for text, _ in dev]))
    return (predictions == [label for _, label in dev]).astype(float)


@pytest.mark.shared
def test_real_classifiers_of_sst2(shared_data: Callable[..., Path]) -> None:
    def read(split: str) -> list[tuple[str, int]]:
        lines = (SHARED_DATA / "glue/SST-2" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        return [(line.split("\t")[0], int(line.split("\t")[1])) for line in lines]

    rows, dev = read("train"), read("dev")
    sizes = {"20000 words": 20000, "the same again": 20000, "2000 words": 2000, "20 words": 20}
    runs = [(name, seed) for name in sizes for seed in range(5)]
    hits = np.array([bag_of_words_hits(sizes[name], seed, rows, dev) for name, seed in runs])
    columns: Columns = {"configuration": [name for name, _ in runs], "seed": [seed for _, seed in runs]}
    columns |= {"accuracy": list(hits.mean(axis=1)), "trainable_parameters": [sizes[name] for name, _ in runs]}
    columns |= {f"example_{place}": list(hits[:, place]) for place in range(len(dev))}
    audit = audit_results(columns, "20000 words", margin=2.0)
    verdicts = {each.name: each.verdict for each in audit.analysis.comparisons}
    assert verdicts["the same again"] is Verdict.IDENTICAL
    assert verdicts["20 words"] is Verdict.WORSE
    noise = [{pair.first, pair.second} for pair in audit.analysis.indistinguishable]
    assert {"20000 words", "the same again"} in noise
    assert {"20000 words", "20 words"} not in noise
    shares = audit.analysis.comparisons[2].variance_shares
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["examples"] > 0.2


ORDERED: Columns = {
    "configuration": [f"r = {r}" for r in (2, 8, 32) for _ in range(3)],
    "seed": [0, 1, 2] * 3,
    "accuracy": [0.95, 0.951, 0.949] * 3,
    "r": [r for r in (2, 8, 32) for _ in range(3)],
}


def test_a_sequence_from_the_smallest_rank_is_refused_and_one_of_rising_costs_noted() -> None:
    rising, falling = ("r = 2", "r = 8"), ("r = 8", "r = 2")
    with pytest.raises(LoraLightningError, match="from the smallest rank, 2, to the largest one, 8"):
        audit_results(ORDERED, "r = 32", sequence=rising)
    assert audit_results(ORDERED, "r = 32", sequence=falling).notes == ()
    costs = {name: cells for name, cells in ORDERED.items() if name != "r"} | {"bytes": ORDERED["r"]}
    audit = audit_results(costs, "r = 32", costs=["bytes"], sequence=rising)
    assert audit.notes[0].startswith(
        "--sequence goes from the cheapest configuration to the most expensive one by bytes;"
    )
    assert audit_results(costs, "r = 32", costs=["bytes"], sequence=falling).notes == ()


def test_full_fine_tuning_and_the_sign_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save_csv(two_configurations(), tmp_path / "results.csv")
    assert main(["study", "audit", str(path), "--reference=r = 64", "--full_fine_tuning=r = 64"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy: larger is better; margin 0.5 points" in printed
    assert (
        "- r = 8, compared with full fine-tuning: PASS for at most 3 % worse; relative difference in percent: "
        in printed
    )
    path = save_csv(two_configurations(loss=[1.0, 1.1, 1.2, 0.9, 1.01, 1.12]), path)
    assert main(["study", "audit", str(path), "--reference=r = 64", "--metric=loss", "--margin=0.02"]) == 0
    assert "loss: smaller is better, and a difference above 0 means better; margin 0.02" in capsys.readouterr().out


def test_a_large_margin_hides_no_interval() -> None:
    (found,) = audit_results(two_configurations(), "r = 64", margin=10).analysis.comparisons
    assert "difference 0.0 points, 95 % interval -0.3 to 0.3" in found.sentence


def test_failed_runs_of_the_reference_stand_beside_a_proof() -> None:
    cells = [*LARGE, "", *SMALL, 0.95]
    columns = two_configurations(accuracy=cells) | {
        "configuration": ["r = 64"] * 4 + ["r = 8"] * 4,
        "seed": [0, 1, 2, 3] * 2,
        "trainable_parameters": [800] * 4 + [100] * 4,
    }
    for sequence in ((), ("r = 8",)):
        audit = audit_results(columns, "r = 64", sequence=sequence)
        assert audit.analysis.comparisons[0].verdict is Verdict.NOT_WORSE
        for text in (audit.analysis.comparisons[0].sentence, audit.analysis.recommendation.answer):
            assert (
                "; 1 of 4 runs of r = 64 failed or have no result, so that it is compared with those that are" in text
            )


def test_equal_outcomes_are_no_noise(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    examples = {f"example_{place}": [1] * 6 for place in range(700)}
    path = save_csv(two_configurations(accuracy=[1.0] * 6) | examples, tmp_path / "results.csv")
    assert main(["study", "audit", str(path), "--reference=r = 64"]) == 0
    printed = capsys.readouterr().out
    assert "There is no difference." in printed
    assert "noise" not in printed


@pytest.mark.parametrize("cost", ["accuracy", "f1"])
def test_a_metric_of_which_more_is_better_is_no_cost(cost: str) -> None:
    with pytest.raises(LoraLightningError, match=f"--cost is {cost}, of which more is better; a cost is a column"):
        audit_results(two_configurations(f1=[0.9] * 6), "r = 64", metric="accuracy", costs=[cost])
