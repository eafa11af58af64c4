"""What is stored comes back as it was; measurements are made once for the same inputs."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from lora_lightning.diagnosis.base_errors import BaseErrors
from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
from lora_lightning.diagnosis.stored import as_json, from_json
from lora_lightning.errors import DataError
from lora_lightning.statistics.jackknife import Interval
from tests.diagnosis import planted


class Kind(StrEnum):
    ONE = "one"


@dataclass(frozen=True)
class Part:
    number: float
    count: int
    kind: Kind


@dataclass(frozen=True)
class Everything:
    text: str
    parts: tuple[Part, ...]
    pair: tuple[float, int]
    by_kind: Mapping[Kind, tuple[float, ...]]
    by_number: Mapping[int, Interval]
    missing: Part | None
    there: Part | None


FOUND = Everything(
    "a",
    (Part(1.5, 2, Kind.ONE), Part(0.1, 3, Kind.ONE)),
    (2.0, 7),
    {Kind.ONE: (1.0, 2.0)},
    {8: Interval(1.0, 0.5, 1.5)},
    None,
    Part(-1.0, 0, Kind.ONE),
)


def test_everything_comes_back() -> None:
    again = from_json(Everything, json.loads(json.dumps(as_json(FOUND))))
    assert again == FOUND
    assert isinstance(next(iter(again.by_kind)), Kind)
    assert isinstance(next(iter(again.by_number)), int)


def test_numbers_that_are_not_finite_are_unknown() -> None:
    content = json.loads(json.dumps(as_json(Part(math.inf, 1, Kind.ONE)), allow_nan=False))
    assert math.isnan(from_json(Part, content).number)
    with pytest.raises(KeyError):
        from_json(Part, {"number": 1.0})


def test_a_field_that_is_newer_than_the_file_has_its_default() -> None:
    content = as_json(planted.errors())
    former = {name: value for name, value in content.items() if name != "dtypes"}
    assert from_json(BaseErrors, former) == planted.errors()


def test_a_measurement_is_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    folder, calls = DiagnosisFolder(tmp_path), []

    def compute() -> Part:
        calls.append(1)
        return Part(float(len(calls)), 1, Kind.ONE)

    assert folder.stored("part", Part) is None
    assert folder.measure("part", Part, {"runs": [1]}, compute).number == 1
    assert folder.measure("part", Part, {"runs": [1]}, compute).number == 1
    assert folder.measure("part", Part, {"runs": [2]}, compute).number == 2
    assert folder.stored("part", Part) == Part(2.0, 1, Kind.ONE)
    path = tmp_path / "measurements/part.json"
    content = json.loads(path.read_text()) | {"seconds": 5.0}
    path.write_text(json.dumps(content))
    assert folder.measured_seconds == 5
    path.write_text(json.dumps(content | {"schema_version": 1}))  # of another release, so it is measured again
    assert folder.measured_seconds == 0
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "seconds"}))
    with pytest.raises(DataError, match="is damaged"):
        _ = folder.measured_seconds


@pytest.mark.parametrize("content", ["{", '{"identity": "x", "seconds": 1, "content": {"number": 1}}'])
def test_a_damaged_measurement_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "part.json").write_text(content)
    with pytest.raises(DataError, match="is damaged"):
        DiagnosisFolder(tmp_path).stored("part", Part)
