"""Directions of metrics by their names, and the room's names on first use."""

import subprocess
import sys

import pytest

import lora_lightning.metrics
from lora_lightning.metrics.direction import higher_is_better


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
        ("score", None),
        ("", None),
    ],
)
def test_direction(name: str, direction: bool | None) -> None:
    assert higher_is_better(name) is direction


def test_every_name_of_the_room_exists_and_no_other() -> None:
    assert all(getattr(lora_lightning.metrics, name) is not None for name in lora_lightning.metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lora_lightning.metrics.nothing


def test_directions_and_audits_import_no_torch() -> None:
    code = "import sys, lora_lightning.cli.study; print({*sys.modules} & {'torch', 'lightning'})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
