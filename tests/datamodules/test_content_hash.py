"""Rows have the same hash if and only if they are the same, whatever they are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from lora_lightning.datamodules.content_hash import content_hash


@dataclass
class Row:
    text: str
    values: Any = None


def rows(change: bool) -> dict[str, Any]:
    """Long enough that NumPy and PyTorch leave out the middle when they print it."""
    array = np.arange(5000, dtype=np.float32)
    array[2500] += change
    tensor = torch.from_numpy(array)
    return {
        "text": ["a", "b" if change else "c"],
        "dataclass": [Row("a"), Row("b" if change else "c")],
        "array": Row("a", array),
        "tensor": Row("a", tensor),
        "bfloat16": tensor.bfloat16()[2400:2600] if change else (tensor + 64).bfloat16()[2400:2600],
        "scalar": torch.tensor(float(change)),
        "shape": tensor.view(50, 100) if change else torch.from_numpy(np.arange(5000, dtype=np.float32)),
        "strided": torch.from_numpy(np.stack([array, array])).T,
    }


@pytest.mark.parametrize("kind", rows(change=False))
def test_a_change_anywhere_changes_the_hash(kind: str) -> None:
    assert content_hash(rows(change=False)[kind]) == content_hash(rows(change=False)[kind])
    assert content_hash(rows(change=False)[kind]) != content_hash(rows(change=True)[kind])
