"""Ratios within turns: when a machine slows down for a minute, only the numbers of the same turn can be compared."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Numbers of several turns.

    Attributes:
        median: Their median.
        low: The least.
        high: The largest.
        turns: How many there are.
    """

    median: float
    low: float
    high: float
    turns: int


def spread(values: Sequence[float]) -> Spread:
    """Summarizes the numbers of the turns, at least one."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def turn_ratio(ours: Sequence[float], peers: Sequence[float], *, higher_is_better: bool) -> float:
    """The ratio of the best numbers of one turn.

    Args:
        ours: Of each of our commands.
        peers: Of each of the peer's commands.
        higher_is_better: Which one is the best.

    Returns:
        Ours / the peer's.
    """
    best = max if higher_is_better else min
    return best(ours) / best(peers)


def ratios(
    turns: Sequence[Mapping[str, float]], ours: Sequence[str], peers: Sequence[str], *, higher_is_better: bool
) -> list[float]:
    """The ratio of each turn; never one of medians, which are of different turns.

    Args:
        turns: Numbers by the names of the commands.
        ours: Names of ours.
        peers: Names of the peer's.
        higher_is_better: Whether larger numbers are better.

    Returns:
        A ratio a turn, in their order.
    """
    return [
        turn_ratio([turn[name] for name in ours], [turn[name] for name in peers], higher_is_better=higher_is_better)
        for turn in turns
    ]


def is_reached(value: float, goal: float, *, higher_is_better: bool) -> bool:
    """Whether a number is at least as good as its goal."""
    return value >= goal if higher_is_better else value <= goal
