"""Rows are measured in turns; what is measured here are commands of a few milliseconds."""

import sys
from pathlib import Path

import pytest
from comparison.row import (
    Limit,
    Outcome,
    Row,
    Side,
    logged,
    milliseconds_a_step,
    samples_per_second,
    seconds_to_first_step,
)
from comparison.turns import measure_row

WRITE = """
import json, os, pathlib, sys
order, name, value = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
order.open("a").write(name + " ")
pathlib.Path(os.environ["STEP_LOG"]).write_text(json.dumps({"value": value, "work": 3 * value}))
"""


def side(order: Path, name: str, value: float) -> Side:
    return Side(name, (sys.executable, "-S", "-c", WRITE, str(order), name, str(value)), logged("value"))


def test_commands_take_turns_and_ratios_are_summarized(tmp_path: Path) -> None:
    order = tmp_path / "order"
    limit = Limit(side(order, "limit", 60), work=logged("work"), goal=0.5)
    row = Row("training", "samples/s", (side(order, "ours", 10),), (side(order, "peer", 4),), 2.0, limit)
    found = measure_row(row, turns=2)
    assert order.read_text().split() == ["limit", "ours", "limit", "peer"] * 2
    assert found["ratio"] == {"median": 2.5, "low": 2.5, "high": 2.5, "turns": 2}
    assert found["share"]["median"] == pytest.approx(30 / 60)
    assert found["values"]["peer"]["median"] == 4
    assert found["turns"][0]["costs"]["ours"]["peak_mib"] > 0
    assert found["load"].keys() == {"foreign_cpus", "steal_share", "worst_steal_share"}


def test_a_command_that_fails_is_named_with_its_last_line(tmp_path: Path) -> None:
    broken = Side(
        "peer", (sys.executable, "-S", "-c", "print('before'); raise SystemExit('no such model')"), logged("x")
    )
    found = measure_row(Row("training", "samples/s", (side(tmp_path / "order", "ours", 1),), (broken,)), turns=2)
    assert found["error"] == "peer ended with status 1: no such model"
    assert "ratio" not in found


def test_a_number_that_was_not_recorded_is_an_error_of_the_row(tmp_path: Path) -> None:
    ours = side(tmp_path / "order", "ours", 1)
    found = measure_row(Row("time", "s", (Side("ours", ours.command, logged("reached")),)), turns=1)
    assert found["error"] == "ours did not record enough (KeyError: 'reached')"


def test_speeds_leave_out_the_first_step() -> None:
    log = {"ends": [103.0, 105.0, 107.0], "samples": [32, 32, 16], "tokens": [400, 300, 200]}
    outcome = Outcome(started=100.0, seconds=9.0, cpu_seconds=9.0, peak_mib=1.0, load=None, log=log)
    assert samples_per_second(outcome) == pytest.approx((32 + 16) / 4)
    assert milliseconds_a_step(outcome) == pytest.approx(2000)
    assert seconds_to_first_step(outcome) == pytest.approx(3.0)
