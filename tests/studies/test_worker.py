"""What a worker takes from a finished run."""

import math
from pathlib import Path

import pytest

from lora_lightning import RunRecord
from lora_lightning.errors import TrialsFailed
from lora_lightning.studies.worker import objective_of


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_metric_that_is_not_finite_or_missing_fails_the_trial(value: float | None) -> None:
    metrics = {"val": {"f1": 0.5} if value is None else {"f1": 0.5, "loss": value}}
    record = RunRecord(Path("run"), "finished", metrics=metrics)
    assert objective_of(record, "val/f1") == 0.5
    with pytest.raises(TrialsFailed, match="the run run has no finite val/loss"):
        objective_of(record, "val/loss")
    with pytest.raises(TrialsFailed, match="no finite test/f1"):
        objective_of(record, "test/f1")
