"""The estimate of a run counts as many batches of validation and test as the run will have."""

from datetime import timedelta
from typing import Any

import pytest

from lora_lightning.studies.estimate import count_validations, limited
from lora_lightning.studies.trial_runs import Evaluations


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 10),
        ({"epochs": 3}, 3),
        ({"interval": 0.25}, 40),
        ({"interval": 0.25, "epochs": 5}, 8),
        ({"interval": 50}, 20),
        ({"interval": 150, "epochs": None}, 6),
        ({"interval": "00:00:01:40"}, 5),
        ({"interval": {"seconds": 100}}, 5),
        ({"interval": timedelta(seconds=250)}, 2),
    ],
)
def test_validations_are_counted_as_often_as_they_run(options: dict[str, Any], expected: int) -> None:
    assert count_validations(Evaluations(**options), batches=1000, batches_per_epoch=100, seconds=500) == expected


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 14), (0.5, 7), (3, 6), (100, 14), (0, 0), (0.0, 0)])
def test_limits_count_for_each_split(limit: float, expected: int) -> None:
    assert limited([4, 10], limit) == expected
