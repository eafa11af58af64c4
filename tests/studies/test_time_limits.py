"""Options that count time are found wherever a study sets them, and numbers of batches are none."""

from pathlib import Path
from typing import Any

import pytest

from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.time_limits import note_on_time_limits
from tests.studies.small_study import BASE, save_study


def note(folder: Path, trainer: dict[str, Any], **changes: Any) -> str:
    base = BASE | {"trainer": BASE["trainer"] | trainer}
    return note_on_time_limits(read_study_file(save_study(folder, base=base, **changes)))


def axis(name: str, values: Any) -> dict[str, Any]:
    short, first = name.rpartition(".")[2], next(iter(values))
    return {"axes": {name: values}, "derived": None, "reference": {short: first}}


@pytest.mark.parametrize(
    ("trainer", "changes", "named"),
    [
        ({"max_time": "00:01:00:00"}, {}, "trainer.max_time"),
        ({"max_time": {"minutes": 1}}, {}, "trainer.max_time"),
        ({}, {"options": {"trainer.max_time": "00:01:00:00"}}, "trainer.max_time"),
        (
            {},
            {"axes": {"trainer.max_time": ["00:01:00:00"]}, "derived": None, "reference": {"max_time": "00:01:00:00"}},
            "trainer.max_time",
        ),
        ({"val_check_interval": "00:00:10:00"}, {}, "trainer.val_check_interval"),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]}, {}, "the callback Timer"),
        ({"callbacks": {"class_path": "Timer"}, "max_time": "1:0:0:0"}, {}, "trainer.max_time, the callback Timer"),
        ({}, axis("trainer.val_check_interval", ["00:00:05:00", 0.5]), "trainer.val_check_interval"),
        (
            {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]},
            axis("timed", {"yes": {"trainer.callbacks": [{"class_path": "Timer"}]}, "no": {"model.lora.r": 2}}),
            "the callback Timer",
        ),
    ],
)
def test_limits_in_time_are_named(trainer: dict[str, Any], changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert f"({named})" in note(tmp_path, trainer, **changes)


@pytest.mark.parametrize("text", [".5", "0.50", "1e2", "10"])
def test_a_number_that_was_typed_is_no_time(text: str, tmp_path: Path) -> None:
    assert not note(tmp_path, {}, options={"trainer.val_check_interval": text})
    assert not note(tmp_path, {}, **axis("trainer.val_check_interval", [text, 1.0]))


def test_null_or_another_value_replaces_all_of_a_limit(tmp_path: Path) -> None:
    assert not note(tmp_path, {"max_time": {"hours": 1}}, options={"trainer.max_time": None})
    assert not note(tmp_path, {"val_check_interval": {"hours": 1}}, options={"trainer.val_check_interval": 0.5})


@pytest.mark.parametrize("trainer", [{}, {"max_time": None}, {"val_check_interval": 0.5}, {"val_check_interval": 10}])
def test_other_limits_are_not(trainer: dict[str, Any], tmp_path: Path) -> None:
    assert not note(tmp_path, trainer)
    assert not note(tmp_path, {"max_time": "1:0:0:0"}, options={"trainer.max_time": None})
