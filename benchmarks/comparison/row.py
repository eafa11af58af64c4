"""What a row of the comparison is: the commands of both sides, the number that each yields, and the goal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comparison.machine import Load
from comparison.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """What running a command took.

    Attributes:
        started: Time of its start, in seconds since the epoch.
        seconds: Until it ended.
        cpu_seconds: CPU time of the command and of the processes that it started.
        peak_mib: Peak resident memory of the largest of these processes, in MiB.
        load: Of others in that time.
        log: What the command wrote to `STEP_LOG`; empty if nothing.
    """

    started: float
    seconds: float
    cpu_seconds: float
    peak_mib: float
    load: Load | None
    log: dict[str, Any]


Value = Callable[[Outcome], float]


@dataclass(frozen=True)
class Side:
    """One way to do the work of a row.

    Attributes:
        name: In the page.
        command: The program and its arguments; `{scratch}` becomes a new folder.
        value: The number that counts.
        environment: Further variables.
    """

    name: str
    command: tuple[str, ...]
    value: Value
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """What the machine can do at most, measured in the same turn.

    Attributes:
        side: Measures it.
        work: How much of it one of our commands used, in the unit of the limit.
        goal: The share that is wanted; `None` for none.
    """

    side: Side
    work: Value
    goal: float | None = None


@dataclass(frozen=True)
class Row:
    """What is compared. Of several commands of a side the best one of a turn counts.

    Attributes:
        title: A phrase.
        unit: Of the number: a rate such as `samples/s`, of which more is better, or an amount such as `s`.
        ours: This project's ways.
        peers: The others' ways; empty if there is nothing to compare with.
        goal: Of the ratio ours / peer, or of the number itself without a peer; `None` for none.
        limit: The limit of the machine, if there is a meaningful one.
    """

    title: str
    unit: str
    ours: tuple[Side, ...]
    peers: tuple[Side, ...] = ()
    goal: float | None = None
    limit: Limit | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether larger numbers are better, as they are of rates."""
        return "/" in self.unit


Rows = dict[str, Callable[[Settings], Row]]  # by name; a row is prepared only if it is measured


def whole_seconds(outcome: Outcome) -> float:
    """Seconds from start to end."""
    return outcome.seconds


def seconds_to_first_step(outcome: Outcome) -> float:
    """Seconds from the start of the process to the end of its first step."""
    return float(outcome.log["ends"][0] - outcome.started)


def seconds_to_quality(outcome: Outcome) -> float:
    """Seconds from the start of the process to the end of the validation that reached the quality."""
    return float(outcome.log["reached"] - outcome.started)


def samples_per_second(outcome: Outcome) -> float:
    """Rows a second, without the first step, which also sets up."""
    return _speed(outcome, "samples")


def tokens_per_second(outcome: Outcome) -> float:
    """Tokens a second without padding, and without the first step."""
    return _speed(outcome, "tokens")


def milliseconds_a_step(outcome: Outcome) -> float:
    """Mean milliseconds of a step, without the first one."""
    ends = outcome.log["ends"]
    return float(1000 * (ends[-1] - ends[0]) / (len(ends) - 1))


def logged(name: str) -> Value:
    """A number that the command wrote under this name."""
    return lambda outcome: float(outcome.log[name])


def per_hour(count: int) -> Value:
    """How many of the things that the command made would be made in an hour.

    Args:
        count: How many it made.
    """
    return lambda outcome: 3600 * count / outcome.seconds


def _speed(outcome: Outcome, unit: str) -> float:
    ends = outcome.log["ends"]
    return float(sum(outcome.log[unit][1:]) / (ends[-1] - ends[0]))
