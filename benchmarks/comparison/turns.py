"""Measures a row in turns: each turn runs every command once, in the same order, each in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.step_log import FILE

from comparison.machine import LoadSampler
from comparison.ratios import ratios, spread
from comparison.row import Outcome, Row, Side

BENCHMARKS = Path(__file__).parents[1]


class CommandError(Exception):
    """A command of a row failed."""


def measure_row(row: Row, turns: int) -> dict[str, Any]:
    """Measures a row.

    Args:
        row: The row.
        turns: How often each command runs.

    Returns:
        Everything that the page shows, ready for JSON; with `error` instead of numbers if a command failed.
    """
    found: list[dict[str, Any]] = []
    for number in range(turns):
        print(f"  turn {number + 1} of {turns}", file=sys.stderr, flush=True)
        try:
            found.append(run_turn(row))
        except CommandError as error:
            return {**describe(row), "error": str(error)}
    return {**describe(row), "turns": found, **summarize(row, found)}


def run_turn(row: Row) -> dict[str, Any]:
    """Runs every command once; the limit before and after ours, since a machine may change in between."""
    limit = [row.limit.side] if row.limit else []
    outcomes = [(side, run_side(side)) for side in (*limit, *row.ours, *limit, *row.peers)]
    values = dict[str, list[float]]()
    for side, outcome in outcomes:
        values.setdefault(side.name, []).append(value_of(side, outcome))
    turn: dict[str, Any] = {
        "values": {name: statistics.mean(found) for name, found in values.items()},
        "costs": {side.name: costs_of(outcome) for side, outcome in outcomes},
    }
    if row.limit:
        best = max if row.higher_is_better else min
        work = best(row.limit.work(outcome) for side, outcome in outcomes if side in row.ours)
        turn["share"] = work / turn["values"][row.limit.side.name]
    return turn


def value_of(side: Side, outcome: Outcome) -> float:
    """The number of a command.

    Raises:
        CommandError: If the command did not record what the number needs, such as a quality that was never reached.
    """
    try:
        return side.value(outcome)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        msg = f"{side.name} did not record enough ({type(error).__name__}: {error})"
        raise CommandError(msg) from error


def costs_of(outcome: Outcome) -> dict[str, Any]:
    """What a command took beside its number, ready for JSON."""
    found = {name: value for name, value in asdict(outcome).items() if name not in {"log", "started"}}
    return found | {name: outcome.log[name] for name in ("gpu_peak_mib",) if name in outcome.log}


def run_side(side: Side) -> Outcome:
    """Runs a command.

    Args:
        side: The command.

    Returns:
        What it took.

    Raises:
        CommandError: If it failed; with the last line of its output.
    """
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "output").open("w+b") as output:
        log = Path(scratch) / "steps.json"
        command = [word.replace("{scratch}", scratch) for word in side.command]
        environment = {"HF_HUB_OFFLINE": "1", **os.environ, **side.environment}
        environment |= {FILE: str(log), "PYTHONPATH": python_path()}
        with LoadSampler() as sampler:
            started = time.time()
            process = subprocess.Popen(  # noqa: S603  # our own commands
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=BENCHMARKS.parent
            )
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.time() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise CommandError(failure(side.name, process.returncode, output.name))
        cpu = used.ru_utime + used.ru_stime
        print(f"    {side.name}: {seconds:.1f} s", file=sys.stderr, flush=True)
        content = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {}
        return Outcome(started, seconds, cpu, used.ru_maxrss / 1024, sampler.load(cpu), content)


def failure(name: str, status: int, output: str) -> str:
    """Says which command failed, and its last line."""
    lines = Path(output).read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    print("\n".join(lines[-20:]), file=sys.stderr)
    return f"{name} ended with status {status}: {lines[-1][:300]}"


def python_path() -> str:
    """`PYTHONPATH` with this folder, where the peers and the callback are, and with the project itself."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, [str(BENCHMARKS), str(BENCHMARKS.parent), given]))


def describe(row: Row) -> dict[str, Any]:
    """The row without its commands' functions."""
    return {
        "title": row.title,
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "goal": row.goal,
        "share_goal": row.limit.goal if row.limit else None,
        "limit": row.limit.side.name if row.limit else None,
        "ours": [side.name for side in row.ours],
        "peers": [side.name for side in row.peers],
        "commands": {side.name: list(side.command) for side in (*row.ours, *row.peers)},
    }


def summarize(row: Row, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spreads of the numbers, of the ratios within turns and of the shares of the limit."""
    values = [turn["values"] for turn in turns]
    ours, peers = [side.name for side in row.ours], [side.name for side in row.peers]
    found: dict[str, Any] = {"values": {name: asdict(spread([turn[name] for turn in values])) for name in values[0]}}
    if peers:
        found["ratio"] = asdict(spread(ratios(values, ours, peers, higher_is_better=row.higher_is_better)))
    if row.limit:
        found["share"] = asdict(spread([turn["share"] for turn in turns]))
    found["load"] = worst_load(cost["load"] for turn in turns for cost in turn["costs"].values())
    return found


def worst_load(loads: Iterable[dict[str, float] | None]) -> dict[str, float] | None:
    """The largest load of others during any of the commands; `None` if the system does not say."""
    known = [load for load in loads if load is not None]
    return {name: max(load[name] for load in known) for name in known[0]} if known else None
