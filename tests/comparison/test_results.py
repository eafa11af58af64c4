"""Nothing that was measured is lost, whatever happens later; and only what is missing is measured again."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import run
from comparison.kept import kept
from comparison.results import FILE, Results, ResultsError
from comparison.row import Row, Side, logged
from comparison.settings import Settings

NAME = "help"  # of some row
COUNT = """
import json, os, pathlib, sys
file = pathlib.Path(sys.argv[1])
number = len(file.read_text()) if file.is_file() else 0
if number in map(int, sys.argv[2].split()):
    raise SystemExit("no memory")
file.write_text("x" * (number + 1))
pathlib.Path(os.environ["STEP_LOG"]).write_text(json.dumps({"number": number}))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(run, "describe_machine", lambda: {"commit": "a", "code": "b", "scripts": "c"})
    return Settings(tmp_path, tmp_path, tmp_path, quick=False)


def measure(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fails: str = "", turns: int = 2, *, missing: bool = False
) -> dict[str, Any]:
    """Measures the row, whose number counts its commands, as far as it gets; returns what the file then says."""
    command = (sys.executable, "-S", "-c", COUNT, str(settings.work / "count"), fails)
    side = Side("ours", command, logged("number"))
    monkeypatch.setattr(run, "describe", lambda row: {"title": row.title, "commands": ["always the same"]})
    monkeypatch.setitem(run.ROWS, NAME, lambda _: Row("a", "s", (side,)))
    options = argparse.Namespace(turns=turns, missing=missing, quick=False, retries=0, timeout=60)
    run.measure(NAME, settings, options, Results(settings.work))
    rows: dict[str, Any] = json.loads((settings.work / FILE).read_text())["rows"]
    return rows[NAME]


def values_of(record: dict[str, Any]) -> list[float]:
    return [turn["values"]["ours"] for turn in record.get("turns", [])]


def test_a_failed_turn_keeps_the_earlier_ones_and_is_continued(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(settings, monkeypatch, fails="1")
    assert values_of(found) == [0]
    assert found["failed"] == "ours ended with status 1: no memory"
    assert found["values"]["ours"]["turns"] == 1
    found = measure(settings, monkeypatch, missing=True)
    assert values_of(found) == [0, 1]
    assert "failed" not in found


def test_a_new_measurement_that_fails_leaves_the_old_one(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(settings, monkeypatch)
    found = measure(settings, monkeypatch, fails="3")
    assert values_of(found) == [0, 1]
    assert values_of(found["unfinished"]) == [2]
    assert "no memory" in found["failed"]
    found = measure(settings, monkeypatch)  # once more from the start
    assert values_of(found) == [3, 4]
    assert not {"failed", "unfinished"} & found.keys()


def test_what_is_there_is_not_measured_again_and_turns_can_be_added(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(settings, monkeypatch)
    assert values_of(measure(settings, monkeypatch, missing=True)) == [0, 1]
    assert values_of(measure(settings, monkeypatch, turns=4, missing=True)) == [0, 1, 2, 3]


def test_turns_of_other_code_are_not_mixed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(settings, monkeypatch)
    monkeypatch.setattr(run, "describe_machine", lambda: {"commit": "other", "code": "b", "scripts": "other"})
    assert values_of(measure(settings, monkeypatch, missing=True)) == [0, 1]  # complete, and of the same program
    assert values_of(measure(settings, monkeypatch, turns=3, missing=True)) == [2, 3, 4]
    monkeypatch.setattr(run, "describe_machine", lambda: {"commit": "other", "code": "new", "scripts": "other"})
    assert values_of(measure(settings, monkeypatch, turns=3, missing=True)) == [5, 6, 7]


def test_any_error_is_one_of_its_row(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Settings) -> Row:
        raise StopIteration

    monkeypatch.setitem(run.ROWS, NAME, broken)
    options = argparse.Namespace(turns=1, missing=False, quick=False, retries=0, timeout=60)
    results = Results(settings.work)
    run.measure(NAME, settings, options, results)
    assert results.rows[NAME]["failed"] == "StopIteration: "


def test_a_quick_run_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure", lambda name, *rest: rest[-1].fail(name, {}, "not now"))
    monkeypatch.setattr(run, "write_comparison", lambda *given: given[1])
    monkeypatch.setattr(run, "compile_code", lambda: None)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    for more in ((), ("--quick",)):
        monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path), "--rows", NAME, *more])
        with pytest.raises(SystemExit, match=f"not measured: {NAME}"):
            run.main()
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob(FILE)} == {FILE, f"quick/{FILE}"}


def test_the_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path)
    results.fail(NAME, {"title": "a"}, "reason")
    before = (tmp_path / FILE).read_text()
    results.rows[NAME]["broken"] = object()
    with pytest.raises(TypeError):
        results.save()
    assert (tmp_path / FILE).read_text() == before


def test_a_file_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).write_text(json.dumps({NAME: {"title": "a"}}))
    with pytest.raises(ResultsError, match="has no `schema` 2"):
        Results(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path), "--rows", NAME])
    with pytest.raises(SystemExit) as error:
        run.main()
    assert error.value.code == 2


def test_what_was_not_made_to_its_end_is_made_again(settings: Settings) -> None:
    made: list[str] = []

    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    def make(folder: Path) -> None:
        made.append(str(folder))
        assert not folder.exists()
        folder.mkdir()

    with pytest.raises(KeyboardInterrupt):
        kept(settings, "trained", fail)
    assert kept(settings, "trained", make) == kept(settings, "trained", make)
    assert len(made) == 1
