"""What a row of the comparison is: the commands of both sides, the number that each yields, and the goal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
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
        less_seconds: What the same command took on less data, if the side has one.
    """

    started: float
    seconds: float
    cpu_seconds: float
    peak_mib: float
    load: Load | None
    log: dict[str, Any]
    less_seconds: float | None = None


Value = Callable[[Outcome], float]


@dataclass(frozen=True)
class Side:
    """One way to do the work of a row.

    Attributes:
        name: In the page.
        command: The program and its arguments; `{scratch}` becomes a new folder, `{seed}` the number of the turn.
        value: The number that counts.
        environment: Further variables.
        less: The same command on less data, which runs before it, so that the time of the rest can be told.
    """

    name: str
    command: tuple[str, ...]
    value: Value
    environment: dict[str, str] = field(default_factory=dict)
    less: tuple[str, ...] = ()


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
        unit: Of the number: a rate such as `samples/s` or a share such as `%`, of which more is better, or an amount
            such as `s`.
        ours: This project's ways.
        peers: The others' ways; empty if there is nothing to compare with.
        goal: Of the ratio ours / peer, or of the number itself without a peer; `None` for none.
        limit: The limit of the machine, if there is a meaningful one.
        fewest_turns: Turns that the row has at least, such as one a seed.
        chooses_peer: Whether the best of the peers' ways is chosen once, before the turns; the best of each turn would
            be the best of so many draws of the noise.
        same_model: Whether both sides must train the same number of parameters.
        same_loss: Whether their losses can be compared.
    """

    title: str
    unit: str
    ours: tuple[Side, ...]
    peers: tuple[Side, ...] = ()
    goal: float | None = None
    limit: Limit | None = None
    fewest_turns: int = 1
    chooses_peer: bool = False
    same_model: bool = True
    same_loss: bool = True

    @property
    def higher_is_better(self) -> bool:
        """Whether larger numbers are better, as they are of rates and shares."""
        return "/" in self.unit or self.unit.startswith("%")


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


def seconds_to_quality_at_least(outcome: Outcome) -> float:
    """The same; of a run that never reached the quality its whole time, which is too little, but in its favour."""
    return seconds_to_quality(outcome) if "reached" in outcome.log else outcome.seconds


def samples_per_second(outcome: Outcome) -> float:
    """Rows a second, without the first step, which also sets up, and without the largest batch."""
    return _speed(outcome.log, "samples")


def tokens_per_second(outcome: Outcome) -> float:
    """Tokens a second without padding, without the first step and without the largest batch."""
    return _speed(outcome.log, "tokens")


def milliseconds_a_step(outcome: Outcome) -> float:
    """Mean milliseconds of a step, without the first one."""
    ends = outcome.log["ends"]
    return float(1000 * (ends[-1] - ends[0]) / (len(ends) - 1))


def logged(name: str) -> Value:
    """A number that the command wrote under this name."""
    return lambda outcome: float(outcome.log[name])


def logged_percent(name: str) -> Value:
    """A share in [0, 1] that the command wrote under this name, in %."""
    return lambda outcome: 100 * float(outcome.log[name])


def per_hour(count: int) -> Value:
    """How many of the things that the command made would be made in an hour.

    Args:
        count: How many it made.
    """
    return lambda outcome: 3600 * count / outcome.seconds


def per_second_of_the_rest(count: int) -> Value:
    """The speed of a whole process beyond what it takes on less data: start and end cancel out.

    Args:
        count: How many things the command does beyond those of `Side.less`.
    """

    def value(outcome: Outcome) -> float:
        if outcome.less_seconds is None or outcome.seconds <= outcome.less_seconds:
            msg = f"{outcome.seconds:.1f} s for all data are not more than {outcome.less_seconds} s for a part of them"
            raise ValueError(msg)
        return count / (outcome.seconds - outcome.less_seconds)

    return value


def _speed(log: Mapping[str, Any], unit: str) -> float:
    """Sides that group by length put their largest batch first, where it does not count; so it counts on no side."""
    ends, places = log["ends"], log["places"]
    largest = max(range(len(places)), key=places.__getitem__)
    counted = [step for step in range(1, len(ends)) if step != largest]
    if log["only_ends_count"] or not counted:
        return float(sum(log[unit][1:]) / (ends[-1] - ends[0]))
    took = [later - earlier for earlier, later in pairwise(ends)]
    return float(sum(log[unit][step] for step in counted) / sum(took[step - 1] for step in counted))
