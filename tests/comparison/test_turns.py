"""Rows are measured in turns; what is measured here are commands of a few milliseconds."""

import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparison import turns
from comparison.row import (
    Limit,
    Outcome,
    Row,
    Side,
    logged,
    milliseconds_a_step,
    per_second_of_the_rest,
    samples_per_second,
    seconds_to_first_step,
    seconds_to_quality,
    seconds_to_quality_at_least,
)
from comparison.same_work import CommandError
from comparison.turns import add_turns, counted_turns, describe, environment, next_turn, run_side

WRITE = """
import json, os, pathlib, sys
order, name, value = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
order.open("a").write(name + " ")
pathlib.Path(os.environ["STEP_LOG"]).write_text(json.dumps({"value": value, "work": 3 * value}))
"""

WITHOUT_BITSANDBYTES = """
import importlib.metadata as metadata
real = metadata.version
def version(name):
    if name == "bitsandbytes":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from peers import install
assert install.index_of("2.13.0+cpu") == ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
assert install.index_of("2.13.0") == []
found = install.pinned(("torch", "bitsandbytes"))
assert found == [f"torch=={real('torch')}"], found
install.main()
"""


def python(code: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code, *map(str, words))


def side(order: Path, name: str, value: float) -> Side:
    return Side(name, python(WRITE, order, name, value), logged("value"))


def measured(row: Row, wanted: int, **options: Any) -> dict[str, Any]:
    record = describe(row)
    add_turns(row, record, wanted, lambda: None, **{"retries": 0, **options})
    return record


def test_commands_take_turns_and_ratios_are_summarized(tmp_path: Path) -> None:
    order = tmp_path / "order"
    limit = Limit(side(order, "limit", 60), work=logged("work"), goal=0.5)
    row = Row("training", "samples/s", (side(order, "ours", 10),), (side(order, "peer", 4),), 2.0, limit)
    found = measured(row, 2)
    assert order.read_text().split() == ["limit", "ours", "limit", "peer", "peer", "limit", "ours", "limit"]
    assert found["ratio"] == {"median": 2.5, "low": 2.5, "high": 2.5, "turns": 2}
    assert found["share"]["median"] == pytest.approx(30 / 60)
    assert found["values"]["peer"]["median"] == 4
    assert found["turns"][0]["costs"]["ours"][0]["peak_mib"] > 0
    assert len(found["turns"][0]["costs"]["limit"]) == 2
    assert found["load"].keys() == {"foreign_cpus", "steal_share", "worst_steal_share"}


def test_each_turn_is_saved_before_the_next(tmp_path: Path) -> None:
    row, record, saved = Row("a", "s", (side(tmp_path / "order", "ours", 1),)), dict[str, Any](), list[int]()
    add_turns(row, record, 2, lambda: saved.append(record["values"]["ours"]["turns"]), retries=0)
    assert saved == [1, 2]
    add_turns(row, record, 3, lambda: saved.append(record["values"]["ours"]["turns"]), retries=0)
    assert saved == [1, 2, 3]  # the third is all that was missing


def test_a_turn_that_fails_leaves_the_others(tmp_path: Path) -> None:
    state, code = tmp_path / "state", "sys.exit('out of memory' if len(p.read_text()) > 1 else 0)"
    state.write_text("")
    peer = Side("peer", python(f"import pathlib, sys; p = pathlib.Path(sys.argv[1]); {code}", state), lambda _: 2.0)
    ours = Side("ours", python("import sys; open(sys.argv[1], 'a').write('x')", state), lambda _: 4.0)
    row, record = Row("training", "samples/s", (ours,), (peer,)), dict[str, Any]()
    with pytest.raises(CommandError, match="peer ended with status 1: out of memory"):
        add_turns(row, record, 3, lambda: None, retries=0)
    assert record["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0, "turns": 2}  # odd turns have the peer first


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (python("print('before'); raise SystemExit('no such model')"), "peer ended with status 1: no such model"),
        (("/no/such/python",), "peer cannot be started: .*No such file"),
        (python("import os; open(os.environ['STEP_LOG'], 'w').write('{')"), "peer wrote a log that is not JSON"),
        (python("pass"), r"peer did not record enough \(KeyError: 'reached'\)"),
        (
            python("import os; open(os.environ['STEP_LOG'], 'w').write('{\"reached\": null}')"),
            r"peer did not record enough \(TypeError",
        ),
    ],
)
def test_every_failure_of_a_command_names_it(command: tuple[str, ...], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        measured(Row("training", "s", (Side("peer", command, logged("reached")),)), 1)


def wait_until_ended(pid: int) -> None:
    """Waits for a process that was killed; `subprocess` may have collected it, or nobody has yet."""
    end, state = time.time() + 30, Path(f"/proc/{pid}/stat")
    with suppress(FileNotFoundError, ProcessLookupError):
        while state.read_text().split()[2] not in "ZX":  # until the signal is there
            assert time.time() < end
            time.sleep(0.1)


def test_a_command_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    child = "import os, time; open({!r}, 'w').write(str(os.getpid())); time.sleep(60)".format(str(tmp_path / "pid"))
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    start = time.time()
    with pytest.raises(CommandError, match=r"slow was ended after 3 s; give more as --timeout"):
        run_side(Side("slow", python(parent), logged("x")), timeout=3)
    assert time.time() - start < 30
    wait_until_ended(int((tmp_path / "pid").read_text()))


def test_ctrl_c_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def interrupted(pid: int, options: int) -> None:
        started.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(turns.os, "wait4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_side(Side("slow", python("import time; time.sleep(60)"), logged("x")))
    monkeypatch.undo()
    wait_until_ended(started[0])


def test_commands_have_caches_of_their_own_and_may_keep_byte_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/users/cache")
    found = environment("/scratch", {}, Path("log"))
    assert found["XDG_CACHE_HOME"] == "/scratch/cache"
    assert found["HF_HOME"] == "/users/cache/huggingface"
    assert "PYTHONDONTWRITEBYTECODE" not in found


def test_a_loud_turn_is_measured_again_and_the_quietest_counts() -> None:
    def turn(number: int, foreign: float) -> dict[str, Any]:
        load = {"foreign_cpus": foreign, "steal_share": 0.0, "worst_steal_share": 0.0}
        return {"number": number, "loud": ["ours"] * (foreign > 0.1), "costs": {"ours": [{"load": load}]}}

    found = [turn(0, 0.0), turn(1, 1.0)]
    assert next_turn(found, 3, retries=2) == 1
    found += [turn(1, 0.5), turn(1, 0.8)]
    assert next_turn(found, 3, retries=2) == 2
    assert next_turn([*found, turn(2, 0.0)], 3, retries=2) is None
    loads = [each["costs"]["ours"][0]["load"]["foreign_cpus"] for each in counted_turns(found)]
    assert loads == [0.0, 0.5]


def test_the_peer_is_chosen_once(tmp_path: Path) -> None:
    order = tmp_path / "order"
    peers = (side(order, "eight", 2), side(order, "many", 5))
    row = Row("predict", "queries/s", (side(order, "ours", 10),), peers, chooses_peer=True)
    found = measured(row, 2)
    assert order.read_text().split() == ["eight", "many", "ours", "many", "many", "ours"]
    assert (found["chosen"], found["peers"], found["ratio"]["median"]) == ("many", ["many"], 2.0)


def test_the_seed_is_the_number_of_the_turn() -> None:
    write = "import json, os, sys; open(os.environ['STEP_LOG'], 'w').write(json.dumps({'seed': sys.argv[1]}))"
    found = measured(Row("a", "s", (Side("ours", python(write, "{seed}"), logged("seed")),)), 3)
    assert [turn["values"]["ours"] for turn in found["turns"]] == [0, 1, 2]


def test_what_a_start_takes_is_taken_off() -> None:
    outcome = Outcome(0.0, 12.0, 1.0, 1.0, None, {}, less_seconds=8.0)
    assert per_second_of_the_rest(400)(outcome) == pytest.approx(100)
    ran = run_side(Side("ours", python("import time; time.sleep(0.3)"), logged("x"), less=python("pass")))
    assert ran.less_seconds is not None
    assert ran.seconds > ran.less_seconds > 0
    with pytest.raises(ValueError, match="not more than"):
        per_second_of_the_rest(400)(Outcome(0.0, 8.0, 1.0, 1.0, None, {}, less_seconds=8.0))


def test_speeds_leave_out_the_first_step_and_the_largest_batch() -> None:
    log: dict[str, Any] = {"ends": [103.0, 105.0, 109.0, 111.0], "samples": [32, 32, 32, 16]}
    log |= {"places": [500, 400, 600, 9], "only_ends_count": False}
    outcome = Outcome(started=100.0, seconds=9.0, cpu_seconds=9.0, peak_mib=1.0, load=None, log=log)
    assert samples_per_second(outcome) == pytest.approx((32 + 16) / 4)
    assert milliseconds_a_step(outcome) == pytest.approx(8000 / 3)
    assert seconds_to_first_step(outcome) == pytest.approx(3.0)
    log["places"] = [700, 400, 600, 9]
    assert samples_per_second(outcome) == pytest.approx((32 + 32 + 16) / 8)
    log |= {"only_ends_count": True, "places": [500, 400, 600, 9]}
    assert samples_per_second(outcome) == pytest.approx((32 + 32 + 16) / 8)


def test_a_peer_that_never_reaches_the_quality_has_its_whole_time() -> None:
    outcome = Outcome(100.0, 9.0, 9.0, 1.0, None, {"reached": 104.0})
    assert seconds_to_quality_at_least(outcome) == seconds_to_quality(outcome) == 4.0
    assert seconds_to_quality_at_least(replace(outcome, log={})) == 9.0
    with pytest.raises(KeyError):
        seconds_to_quality(replace(outcome, log={}))


def test_peers_get_the_same_build_of_pytorch_and_lack_what_is_not_here() -> None:
    command = [sys.executable, "-c", WITHOUT_BITSANDBYTES, "--help"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=turns.BENCHMARKS)
    assert "--output" in found.stdout
