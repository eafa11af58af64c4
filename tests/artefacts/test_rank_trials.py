"""Models beside the full adapter: which numbers of examples are compared, and what happens if there are none."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_lightning.artefacts.compress_report import verdict_sentences
from lora_lightning.artefacts.compress_results import CompressResult, Sizes
from lora_lightning.artefacts.example_measuring import Measured, labeled_documents
from lora_lightning.artefacts.rank_trials import Comparison, RankChoice
from lora_lightning.statistics import Metric, Verdict
from lora_lightning.statistics.study_results import Scale

K8 = RankChoice("k = 8", "uniform", 8, {"layer": 8}, 80)
FULL = RankChoice("full adapter", "full", 16, {"layer": 16}, 160)


def questions(f1: Any) -> Measured:
    values = np.asarray(f1, dtype=np.float64)
    return Measured({"f1": float(values.mean())}, {"f1": values, "has_answer": np.ones(len(values), dtype=bool)})


def decisions(labels: Any, predictions: Any, **metrics: float) -> Measured:
    rows = {"label": np.asarray(labels), "prediction": np.asarray(predictions), "weight": np.ones(len(labels))}
    return Measured(metrics, rows)


def metric(name: str, margin: float = 0.5) -> Metric:
    return Metric(name, margin, higher_is_better=True, scale=Scale.FRACTION)


def test_outcomes_of_0_and_1_are_compared_with_what_the_full_adapter_has() -> None:
    full, truncated = np.full(400, 0.9), np.ones(400)
    truncated[:40] = 0.0  # 9 points are lost where 90 examples gain a tenth each
    found = Comparison(metric("f1", 5.0), questions(full)).compare(K8, questions(truncated), is_tested=True)
    assert found.difference.value == pytest.approx(0.0)
    assert found.difference.high - found.difference.low < 0.07  # of the standard deviation 0.3, not of that of signs
    signs = np.repeat([-1.0, 1.0], [40, 360])
    assert found.difference.high < signs.mean()


@pytest.mark.parametrize("name", ["f1", "matthews_correlation", "macro_f1"])
def test_equal_decisions_prove_nothing_on_few_examples(name: str) -> None:
    labels = np.tile([0, 1], 20)
    predictions = np.where(np.arange(40) < 4, 1 - labels, labels)
    values = {"f1": 0.9, "matthews_correlation": 0.8, "macro_f1": 0.9}
    model = decisions(labels, predictions, **values)
    found = Comparison(metric(name), model).compare(K8, model, is_tested=True)
    assert found.verdict is Verdict.UNDECIDED
    assert found.missing_examples
    assert found.missing_examples > 40


def test_equal_answers_and_equal_losses_prove_nothing_on_few_examples() -> None:
    model = questions(np.tile([0.2, 0.8], 20))
    assert Comparison(metric("f1"), model).compare(K8, model, is_tested=True).verdict is Verdict.UNDECIDED
    rows = {"score": np.linspace(-3, -1, 40), "weight": np.ones(40), "hits": np.ones(40)}
    text = Measured({"perplexity": math.exp(2.0)}, rows)
    log = Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG)
    found = Comparison(log, text).compare(K8, text, is_tested=True)
    assert found.verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_an_undefined_metric_has_no_interval_and_is_not_proven() -> None:
    labels = np.tile([0, 1], 20)
    full = decisions(labels, np.where(np.arange(40) < 4, 1 - labels, labels), matthews_correlation=0.8)
    constant = decisions(labels, np.zeros(40, dtype=np.int64), matthews_correlation=0.0)
    comparison = Comparison(metric("matthews_correlation"), full)
    tested = comparison.compare(K8, constant, is_tested=True)
    assert tested.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert not tested.verdict.proven
    shown = comparison.compare(K8, constant, is_tested=False)
    assert shown.verdict is None
    assert shown.difference.value == pytest.approx(-0.8)
    assert math.isnan(shown.difference.low)
    assert "unknown" in comparison.shown(shown)
    few = Comparison(metric("macro_f1"), decisions([0, 1, 1], [0, 1, 1], macro_f1=1.0))
    missing = few.compare(K8, decisions([0, 1, 1], [0, 1, 0]), is_tested=False)
    assert math.isnan(missing.value)
    assert "nan" in few.shown(missing)


def test_the_examples_are_those_of_the_metric() -> None:
    rows = {
        "label": np.array([0, 1, 1, 2]),
        "prediction": np.array([0, 1, 0, 2]),
        "weight": np.ones(4),
        "is_out_of_scope": np.array([False, False, False, True]),
    }
    model = Measured({"in_scope_accuracy": 2 / 3}, rows)
    assert Comparison(metric("in_scope_accuracy"), model).full_row(FULL).examples == 3


def test_documents_without_labels_do_not_count() -> None:
    rows = {
        "score": np.array([-1.0, -2.0, 0.0]),
        "weight": np.array([3.0, 1.0, 0.0]),
        "hits": np.array([2.0, 1.0, 0.0]),
    }
    model = Measured({"perplexity": math.exp(1.25)}, labeled_documents(rows))
    log = Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG)
    assert Comparison(log, model).full_row(FULL).examples == 2


def result(*, is_tested_on_validation: bool) -> CompressResult:
    model = questions(np.tile([0.2, 0.8], 4000))
    comparison = Comparison(metric("f1"), model)
    row = comparison.compare(K8, model, is_tested=True)
    full = comparison.full_row(FULL)
    return CompressResult(
        source=Path("run"),
        output=Path("small"),
        metric=comparison.metric,
        r=16,
        k=8,
        rank=8,
        layout="portable",
        validation=(full, row),
        test=row,
        full_test=full,
        sizes=Sizes(2, 1, 1, 2),
        loaders=(),
        max_logit_difference=0.0,
        largest_logit=1.0,
        measured_on="val of SquadV2DataModule, 8,000 examples",
        tested_on="test of SquadV2DataModule, 8,000 examples",
        is_tested_on_validation=is_tested_on_validation,
        seconds=1.0,
    )


def test_the_rows_on_which_a_rank_was_chosen_confirm_nothing() -> None:
    other, same = result(is_tested_on_validation=False), result(is_tested_on_validation=True)
    assert other.confirmed
    assert verdict_sentences(other)[1].startswith("Confirmed on test of SquadV2DataModule")
    assert not same.confirmed
    sentence = verdict_sentences(same)[1]
    assert sentence.startswith("Not confirmed: test of SquadV2DataModule, 8,000 examples, has the rows of the validat")
    assert "data.test_share" in sentence
    assert (same.as_json()["confirmed"], same.as_json()["is_tested_on_validation"]) == (False, True)
