"""Metrics of merged models have intervals among the values that there can be."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import FunnelConfig

from lora_lightning.artefacts.measuring import _estimate
from lora_lightning.artefacts.observers import RandomTokenObserver
from lora_lightning.statistics import Interval, jackknife_interval


@pytest.mark.parametrize(
    ("name", "value", "ends"),
    [
        ("accuracy", 0.99, (0.9, 1.0)),
        ("domain_accuracy/travel", 0.99, (0.9, 1.0)),
        ("out_of_scope_f1_at_threshold", 0.01, (0.0, 0.1)),
        ("matthews_correlation", -0.99, (-1.0, -0.9)),
        ("matthews_correlation", 0.01, (-0.1, 0.1)),
        ("loss", 0.01, (0.0, 0.1)),
        ("perplexity", 1.01, (1.0, 1.1)),
        ("best_f1_thresh", -0.01, (-0.1, 0.1)),
    ],
)
def test_ends_are_values_that_the_metric_can_have(name: str, value: float, ends: tuple[float, float]) -> None:
    without = value + 0.01 * np.linspace(-1.0, 1.0, 10)
    wide = jackknife_interval(value, without)
    found = _estimate("val", name, (value, without), (value, without))
    expected = Interval(value, max(wide.low, ends[0]), min(wide.high, ends[1]))
    assert found.merged == found.adapter == expected
    assert found.merged.high - found.merged.low < wide.high - wide.low or wide == expected
    assert found.change == Interval(0.0, 0.0, 0.0)


def test_no_interval_stays_none() -> None:
    found = _estimate("val", "accuracy", (1.0, np.array([1.0, np.nan])), (1.0, np.array([1.0, np.nan])))
    assert math.isnan(found.merged.low)
    assert math.isnan(found.merged.high)


def test_random_tokens_need_no_token_that_ends_a_text() -> None:
    network: Any = SimpleNamespace(config=FunnelConfig(vocab_size=50))
    assert all(int(batch["input_ids"].max()) < 50 for batch in RandomTokenObserver(network).batches)
