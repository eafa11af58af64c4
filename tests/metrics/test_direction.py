"""Directions of metrics by their names, and the room's names on first use."""

import math
import subprocess
import sys

import pytest

import lora_lightning.metrics
from lora_lightning.metrics.direction import higher_is_better, is_logarithm, metric_range


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("accuracy", True),
        ("test/in_scope_accuracy", True),
        ("In-Scope Accuracy", True),
        ("macro_f1", True),
        ("loss", False),
        ("val/loss", False),
        ("log_perplexity", False),
        ("test perplexity", False),
        ("out_of_scope_fpr_at_95_tpr", False),
        ("out_of_scope_f1_at_threshold", True),
        ("test/out_of_scope_fpr_at_95_tpr", False),
        ("domain_accuracy/travel", True),
        ("test/domain_accuracy/lossless", True),
        ("f1_macro", True),
        ("Precision weighted", True),
        ("loss_at_threshold", False),
        ("testAccuracy", True),
        ("test/Macro-F1", True),
        ("top-1-accuracy", True),
        ("HasAns_f1", True),
        ("logPerplexity", False),
        ("score", None),
        ("inaccuracy", None),
        ("test/imprecision", None),
        ("1 - accuracy", None),
        ("1-f1", None),
        ("neg_mean_squared_error", None),
        ("negative_loss", None),
        ("test/inv_perplexity", None),
        ("val_neg_loss", None),
        ("seconds_to_accuracy", None),
        ("steps_to_accuracy", None),
        ("drop_in_accuracy", None),
        ("loss_of_accuracy", None),
        ("deltaAccuracy", None),
        ("std accuracy", None),
        ("accuracy/seconds", None),
        ("test/accuracy/std", None),
        ("domain_accuracy/time", True),
        ("gloss", None),
        ("accuracy_spread", None),
        ("", None),
    ],
)
def test_direction(name: str, direction: bool | None) -> None:
    assert higher_is_better(name) is direction


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("out_of_scope_f1_at_threshold", (0, 1)),
        ("val/domain_accuracy/travel", (0, 1)),
        ("F1 macro", (0, 1)),
        ("matthews_correlation", (-1, 1)),
        ("test/perplexity", (1, math.inf)),
        ("val/loss", (0, math.inf)),
        ("score", (-math.inf, math.inf)),
        ("seconds_to_accuracy", (-math.inf, math.inf)),
    ],
)
def test_range(name: str, ends: tuple[float, float]) -> None:
    assert metric_range(name) == ends


def test_a_logarithm_is_a_word_of_the_name() -> None:
    assert all(
        map(
            is_logarithm,
            ["log_perplexity", "test/log perplexity", "Log-Perplexity", "logPerplexity", "testLogPerplexity"],
        )
    )
    assert not any(map(is_logarithm, ["dialog_perplexity", "logit_perplexity", "catalog/perplexity", "perplexity"]))


def test_every_name_of_the_room_exists_and_no_other() -> None:
    assert all(getattr(lora_lightning.metrics, name) is not None for name in lora_lightning.metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lora_lightning.metrics.nothing


def test_directions_and_audits_import_no_torch() -> None:
    code = "import sys, lora_lightning.cli.study; print({*sys.modules} & {'torch', 'lightning'})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
