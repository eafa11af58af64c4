"""Rows have the same hash if and only if they are the same, whatever they are made of."""

from dataclasses import dataclass, field
from datetime import date
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from lora_lightning.datamodules.chat_records import Example
from lora_lightning.datamodules.content_hash import content_hash, former_content_hash, has_places
from lora_lightning.datamodules.plain_text import Corpus
from lora_lightning.datamodules.sequence_classification import LabeledTexts

OLD_LABELED = "d221419026da9d524c992d37280db874b48fdb0fb443b58354a0554f625ca5bc"
OLD_CORPUS = "5607b4b15abceed82078623962943d9ab0a85603bda91c5873b4872ae72706b1"
OLD_EXAMPLE = "de69515c5cd5b29d3e94c5ea726b7b4e37ad56a27b7eec5f62c45ed36b6cc3e3"
OLD_ARRAY = "27d76145970e08e9bdb7ffbc31e5009daa6acbc942a922f6f2a4f0240fbc7cdb"


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


def tables(change: bool) -> dict[str, Any]:
    """Rows of a user's own data module, in the middle of which one cell may differ."""
    texts = [f"text {number}" for number in range(500)]
    texts[250] += " and more" if change else ""
    pandas = pytest.importorskip("pandas")
    objects = np.array([*texts, None], dtype=object)
    return {
        "pandas": pandas.DataFrame({"text": texts}),
        "series": pandas.Series(texts),
        "pyarrow": pa.table({"text": texts}),
        "datasets": datasets.Dataset.from_dict({"text": texts}),
        "objects": objects,
        "set": {*texts},
        "bytes": " ".join(texts).encode(),
        "date": date(2026, 1, 1 + change),
        "number": np.int64(change),
        "in a dataclass": Row("a", datasets.Dataset.from_dict({"text": texts})),
    }


@pytest.mark.parametrize("kind", tables(change=False))
def test_tables_of_other_packages_count_by_their_rows(kind: str) -> None:
    assert content_hash(tables(change=False)[kind]) == content_hash(tables(change=False)[kind])
    assert content_hash(tables(change=False)[kind]) != content_hash(tables(change=True)[kind])


@dataclass
class Placed:
    where: str = field(compare=False)
    text: str


def test_where_a_row_was_read_does_not_count() -> None:
    assert content_hash([Placed("a", "x")]) == content_hash([Placed("b", "x")]) != content_hash([Placed("b", "y")])
    assert former_content_hash([Placed("a", "x")]) != former_content_hash([Placed("b", "x")])
    assert has_places([Placed("a", "x")])
    assert has_places(Placed("a", "x"))
    assert not has_places([Row("x")])
    assert not has_places([])


def test_an_object_of_unknown_content_is_named() -> None:
    with pytest.warns(UserWarning, match="objects of the class object, whose content is not known"):
        found = content_hash([object()])
    assert found == content_hash([object()])


def test_runs_of_earlier_releases_keep_their_hashes() -> None:
    """Digests that 0.1 recorded for these rows."""
    rows = LabeledTexts(["a", "b"], [0, 1], None)
    assert former_content_hash(rows) == OLD_LABELED
    assert former_content_hash(Corpus("f.txt", ["a", "b"], True)) == OLD_CORPUS
    example = Example("f, line 1", [{"role": "user", "content": "x"}], learnt_messages=(1,))
    assert former_content_hash([example]) == OLD_EXAMPLE
    assert former_content_hash(np.arange(6, dtype=np.float32).reshape(2, 3)) == OLD_ARRAY
