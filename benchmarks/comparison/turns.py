"""Measures a row in turns: each runs every command once, in processes of their own; in odd turns the peers first."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, replace
from pathlib import Path
from threading import Timer
from typing import Any

from peers.step_log import FILE

from comparison.machine import Load, LoadSampler, is_quiet
from comparison.ratios import ratios, spread
from comparison.row import Outcome, Row, Side
from comparison.same_work import CommandError, check_same_work, work_of

BENCHMARKS = Path(__file__).parents[1]
TIMEOUT = 3600.0  # seconds of one command
RETRIES = 2  # of a turn that others disturbed


def add_turns(
    row: Row,
    record: dict[str, Any],
    wanted: int,
    save: Callable[[], None],
    *,
    retries: int = RETRIES,
    timeout: float = TIMEOUT,
) -> None:
    """Measures the turns that a row lacks, and saves after each of them.

    Args:
        row: The row.
        record: What is known of it, ready for JSON; gets the turns and their summary.
        wanted: How many turns there shall be.
        save: Writes the record.
        retries: How often a turn is measured again that others disturbed; the quietest one counts.
        timeout: Seconds of one command.

    Raises:
        CommandError: If a command failed, or both sides did not do the same work; earlier turns stay.
    """
    if row.chooses_peer and "chosen" not in record:
        record["chosen"] = best_peer(row, timeout)
        save()
    row = with_chosen_peer(row, record)
    record["peers"] = [side.name for side in row.peers]
    turns = record.setdefault("turns", [])
    while (number := next_turn(turns, wanted, retries)) is not None:
        print(f"  turn {number + 1} of {wanted}", file=sys.stderr, flush=True)
        turn = run_turn(row, number, timeout)
        try:
            check_same_work(row, turn["work"])
        except CommandError:
            record.setdefault("refused", []).append(turn)
            raise
        turns.append(turn)
        record |= summarize(row, turns)
        save()


def next_turn(turns: Iterable[Mapping[str, Any]], wanted: int, retries: int) -> int | None:
    """The number of the turn to measure next; `None` if all are there, each quiet or tried often enough."""
    tries = Counter(turn["number"] for turn in turns)
    quiet = {turn["number"] for turn in turns if not turn["loud"]}
    return next((number for number in range(wanted) if number not in quiet and tries[number] <= retries), None)


def best_peer(row: Row, timeout: float) -> str:
    """Runs each of the peers' commands once, and names the best."""
    found = {side.name: value_of(side, run_side(side, timeout=timeout)) for side in row.peers}
    return (max if row.higher_is_better else min)(found, key=found.__getitem__)


def with_chosen_peer(row: Row, record: Mapping[str, Any]) -> Row:
    """The row with the peer that was chosen, if one was."""
    return replace(row, peers=tuple(side for side in row.peers if side.name == record.get("chosen", side.name)))


def order_of(row: Row, number: int) -> tuple[Side, ...]:
    """The commands of a turn: the limit before and after ours, since a machine may change; odd turns peers first."""
    limit = (row.limit.side,) if row.limit else ()
    ours = (*limit, *row.ours, *limit)
    return (*row.peers, *ours) if number % 2 else (*ours, *row.peers)


def run_turn(row: Row, number: int, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Runs every command once.

    Args:
        row: The row.
        number: Of the turn, from 0; also the seed of commands that take one.
        timeout: Seconds of one command.

    Returns:
        Values, costs and work of each side, ready for JSON.
    """
    outcomes = [(side, run_side(side, seed=number, timeout=timeout)) for side in order_of(row, number)]
    values, costs = dict[str, list[float]](), dict[str, list[dict[str, Any]]]()
    for side, outcome in outcomes:
        values.setdefault(side.name, []).append(value_of(side, outcome))
        costs.setdefault(side.name, []).append(costs_of(outcome))
    turn: dict[str, Any] = {
        "number": number,
        "values": {name: statistics.mean(found) for name, found in values.items()},
        "costs": costs,
        "loud": [name for name, found in costs.items() if not all(is_quiet(each["load"]) for each in found)],
        "work": {side.name: work_of(outcome.log) for side, outcome in outcomes if "environment" in outcome.log},
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
    except (KeyError, IndexError, ZeroDivisionError, TypeError, ValueError) as error:
        msg = f"{side.name} did not record enough ({type(error).__name__}: {error})"
        raise CommandError(msg) from error


def costs_of(outcome: Outcome) -> dict[str, Any]:
    """What a command took beside its number, ready for JSON."""
    found = {name: value for name, value in asdict(outcome).items() if name not in {"log", "started"}}
    return found | {name: outcome.log[name] for name in ("gpu_peak_mib",) if name in outcome.log}


def run_side(side: Side, *, seed: int = 0, timeout: float = TIMEOUT) -> Outcome:
    """Runs a command; before it the same on less data, if the side has that.

    Args:
        side: The command.
        seed: Takes the place of `{seed}`.
        timeout: Seconds after which it is ended.

    Returns:
        What it took.

    Raises:
        CommandError: If it failed; with the last line of its output.
    """
    before = [_run(f"{side.name}, less", side.less, side.environment, seed, timeout)] if side.less else []
    outcome = _run(side.name, side.command, side.environment, seed, timeout)
    if before and before[0].load and outcome.load:
        worst = (max(pair) for pair in zip(astuple(before[0].load), astuple(outcome.load), strict=True))
        outcome = replace(outcome, load=Load(*worst))
    return replace(outcome, less_seconds=before[0].seconds if before else None)


def _run(name: str, words: Iterable[str], variables: Mapping[str, str], seed: int, timeout: float) -> Outcome:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        log, output = Path(scratch) / "steps.json", Path(scratch) / "output"
        command = [word.replace("{scratch}", scratch).replace("{seed}", str(seed)) for word in words]
        with LoadSampler() as sampler:
            started = time.time()
            status, used, in_time = _wait_for(name, command, environment(scratch, variables, log), output, timeout)
            seconds = time.time() - started
        if not in_time:
            msg = f"{name} was ended after {timeout:.0f} s; give more as --timeout"
            raise CommandError(msg)
        if status:
            raise CommandError(failure(name, status, output))
        cpu = used.ru_utime + used.ru_stime
        print(f"    {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
        return Outcome(started, seconds, cpu, used.ru_maxrss / 1024, sampler.load(cpu), _read_log(name, log))


def environment(scratch: str, variables: Mapping[str, str], log: Path) -> dict[str, str]:
    """The variables of a command.

    Caches are in a folder of its own, so that no earlier command, and none of the user's, makes it faster; only models
    of the hub stay where they are. Python may keep its byte code, as it does unless somebody forbids it.

    Args:
        scratch: The command's folder.
        variables: Further ones.
        log: File for `STEP_LOG`.
    """
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    hub = given.get("XDG_CACHE_HOME", str(Path.home() / ".cache")) + "/huggingface"
    found = {"HF_HUB_OFFLINE": "1", "HF_HOME": hub, **given, "XDG_CACHE_HOME": f"{scratch}/cache", **variables}
    return found | {FILE: str(log), "PYTHONPATH": python_path()}


def _wait_for(
    name: str, command: list[str], variables: dict[str, str], output: Path, timeout: float
) -> tuple[int, Any, bool]:
    """Exit status, resources, and whether it ended in time; whatever ends this process ends the command, too."""
    with output.open("wb") as stream:
        try:
            process = subprocess.Popen(  # noqa: S603  # our own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=variables,
                cwd=BENCHMARKS.parent,
                start_new_session=True,  # a group, so that workers end with it
            )
        except OSError as error:
            msg = f"{name} cannot be started: {error}"
            raise CommandError(msg) from error
        with _ended_after(process, timeout) as late:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used, not late


@contextmanager
def _ended_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[list[bool]]:
    """Kills a process with its group when time is over (then the list has an entry) or an error comes."""
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        _kill(process)

    timer = Timer(seconds, end)
    timer.start()
    try:
        yield late
    except BaseException:  # Ctrl-C, too
        _kill(process)
        raise
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_log(name: str, log: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {}
    except ValueError as error:
        msg = f"{name} wrote a log that is not JSON ({error})"
        raise CommandError(msg) from error
    return found


def failure(name: str, status: int, output: Path) -> str:
    """Says which command failed, and its last line."""
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
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
        "same_loss": row.same_loss,
        "ours": [side.name for side in row.ours],
        "peers": [side.name for side in row.peers],
        "commands": {side.name: [*side.less, *side.command] for side in (*row.ours, *row.peers)},
    }


def summarize(row: Row, turns: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spreads of the numbers, of the ratios within turns and of the shares of the limit.

    Of a turn that was measured several times, the quietest time counts.
    """
    found_turns = counted_turns(turns)
    values = [turn["values"] for turn in found_turns]
    ours, peers = [side.name for side in row.ours], [side.name for side in row.peers]
    found: dict[str, Any] = {"values": {name: asdict(spread([turn[name] for turn in values])) for name in values[0]}}
    if peers:
        found["ratio"] = asdict(spread(ratios(values, ours, peers, higher_is_better=row.higher_is_better)))
    if row.limit:
        found["share"] = asdict(spread([turn["share"] for turn in found_turns]))
    return found | {"load": worst_load(loads_of(found_turns))}


def counted_turns(turns: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each number, the turn that others disturbed least."""
    best: dict[int, dict[str, Any]] = {}
    for turn in turns:
        known = best.get(turn["number"])
        if known is None or disturbance(turn) < disturbance(known):
            best[turn["number"]] = turn
    return [best[number] for number in sorted(best)]


def disturbance(turn: dict[str, Any]) -> tuple[bool, float]:
    """Whether others disturbed it, and how much the worst of its commands; sorts turns."""
    worst = worst_load(loads_of([turn]))
    return bool(turn["loud"]), worst["foreign_cpus"] + worst["steal_share"] if worst else 0.0


def loads_of(turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, float] | None]:
    """The load of others during each command."""
    for turn in turns:
        yield from (cost["load"] for costs in turn["costs"].values() for cost in costs)


def worst_load(loads: Iterable[dict[str, float] | None]) -> dict[str, float] | None:
    """The largest load of others during any of the commands; `None` if the system does not say."""
    known = [load for load in loads if load is not None]
    return {name: max(load[name] for load in known) for name in known[0]} if known else None
