"""One number per test example, against the metrics that the tasks report for the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lora_lightning.analysis.metric_outcomes import OUTCOMES, metric_outcomes
from lora_lightning.metrics import LabelSpace
from lora_lightning.metrics.intents import classification_metrics
from lora_lightning.metrics.out_of_scope import out_of_scope_score
from lora_lightning.studies.trial_measurements import read_outcome_rows, write_outcomes

NAMES = ["a", "b", "c"]


def rows_and_metrics(space: LabelSpace, out_of_scope: int | None) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """What a trial would write for random logits, and the metrics of the same rows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(
        0, len(space.names) + (space.has_out_of_scope and out_of_scope is None), (200,), generator=generator
    )
    if space.has_out_of_scope and out_of_scope is None:
        labels[labels == 2] = -1
    logits = torch.randn(200, len(space.names), generator=generator)
    logits += torch.nn.functional.one_hot(labels.clamp(min=0), len(space.names)) * 1.5
    loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    metrics = classification_metrics(space)
    metrics.update(logits, labels, loss)
    scores = -torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    rows = {
        "label": labels,
        "prediction": logits.argmax(dim=-1),
        "score": scores,
        "weight": (labels != -1).float(),
        "is_out_of_scope": labels == (-1 if out_of_scope is None else out_of_scope),
        "out_of_scope_score": out_of_scope_score(logits, out_of_scope),
    }
    return {name: column.numpy() for name, column in rows.items()}, {
        name: float(value) for name, value in metrics.compute().items()
    }


@pytest.mark.parametrize(
    ("space", "out_of_scope", "expected"),
    [
        (LabelSpace(NAMES), None, {"accuracy", "loss", "macro_f1"}),
        (LabelSpace(NAMES[:2]), None, {"accuracy", "loss", "macro_f1", "f1", "matthews_correlation"}),
        (
            LabelSpace(NAMES, 2, has_out_of_scope=True),
            2,
            {"accuracy", "loss", "macro_f1", "in_scope_accuracy", "out_of_scope_auroc"},
        ),
        (
            LabelSpace(NAMES[:2], None, has_out_of_scope=True),
            None,
            {"accuracy", "loss", "macro_f1", "in_scope_accuracy", "out_of_scope_auroc", "f1", "matthews_correlation"},
        ),
    ],
)
def test_the_mean_is_the_metric(space: LabelSpace, out_of_scope: int | None, expected: set[str]) -> None:
    rows, metrics = rows_and_metrics(space, out_of_scope)
    found = {name: metric_outcomes(name, rows, value) for name, value in metrics.items()}
    assert {name for name, outcomes in found.items() if outcomes is not None} == expected
    for name in expected:
        outcomes = found[name]
        assert outcomes is not None
        assert outcomes.mean() == pytest.approx(metrics[name], abs=1e-5)
        assert len(outcomes) > 100
        assert outcomes.std() > 0


def test_numbers_whose_mean_is_not_the_metric_are_not_used() -> None:
    rows, metrics = rows_and_metrics(LabelSpace(NAMES), None)
    assert metric_outcomes("accuracy", rows, metrics["accuracy"] + 0.002) is None
    assert metric_outcomes("accuracy", {}, metrics["accuracy"]) is None
    assert metric_outcomes("calibration_error", rows, metrics["calibration_error"]) is None


def test_regression_and_several_labels() -> None:
    numbers = np.random.default_rng(0).normal(size=(2, 50))
    labels, predictions = numbers[0], numbers[0] + 0.3 * numbers[1]
    rows = {"label": labels, "prediction": predictions, "weight": np.ones(50)}
    expected = {
        "mean_squared_error": np.mean((labels - predictions) ** 2),
        "mean_absolute_error": np.mean(np.abs(labels - predictions)),
        "pearson": np.corrcoef(labels, predictions)[0, 1],
    }
    for name, value in expected.items():
        found = metric_outcomes(name, rows, value)
        assert found is not None, name
    exact = metric_outcomes("exact_match", {"exact": np.array([True, False, True, True])}, 0.75)
    assert exact is not None
    assert exact.tolist() == [1, 0, 1, 1]


def test_rows_are_written_in_the_order_of_the_data(tmp_path: Path) -> None:
    columns = {
        "test_b": {"index": torch.tensor([2, 0, 1]), "exact": torch.tensor([True, False, True])},
        "test_a": {"index": torch.tensor([0]), "exact": torch.tensor([False])},
    }
    write_outcomes(tmp_path / "rows.parquet", columns)
    rows = read_outcome_rows(tmp_path / "rows.parquet", "test_b")
    assert rows["index"].tolist() == [0, 1, 2]
    assert rows["exact"].tolist() == [False, True, True]
    assert read_outcome_rows(tmp_path / "missing.parquet", "test_b") == {}


def test_each_outcome_says_which_columns_it_needs() -> None:
    rows, metrics = rows_and_metrics(LabelSpace(NAMES[:2], None, has_out_of_scope=True), None)
    for name in OUTCOMES.keys() & metrics.keys():
        for column in OUTCOMES[name][0]:
            assert metric_outcomes(name, {key: rows[key] for key in rows if key != column}, metrics[name]) is None
