"""Several tests with one error rate: the fixed sequence and Holm's correction."""

from collections.abc import Sequence

import numpy as np

ERROR_RATE = 0.05


def fixed_sequence(p_values: Sequence[float], error_rate: float = ERROR_RATE) -> int:
    """Tests hypotheses in an order that was fixed beforehand, and stops at the first failure.

    The chance of any false rejection is at most `error_rate` without a correction, because a true hypothesis can be
    rejected wrongly only if it is the first true one (Maurer, Hothorn & Lehmacher 1995).

    Args:
        p_values: One-sided p values in the fixed order.
        error_rate: In (0, 1).

    Returns:
        How many hypotheses, from the start, are rejected.
    """
    failures = [place for place, p in enumerate(p_values) if not p <= error_rate]
    return failures[0] if failures else len(p_values)


def holm_share(adjusted: Sequence[float], error_rate: float = ERROR_RATE) -> float:
    """The error rate that a further rejection takes for certain, whatever the other hypotheses do.

    Args:
        adjusted: p values adjusted by Holm.
        error_rate: Of all tests together.

    Returns:
        `error_rate`, divided by the number of hypotheses that are not rejected.
    """
    return error_rate / max(1, sum(not p <= error_rate for p in adjusted))


def holm(p_values: Sequence[float], testable: Sequence[bool] | None = None) -> list[float]:
    """Adjusts p values, so that rejecting those up to 5 % has a chance of at most 5 % for any false rejection.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Args:
        p_values: In any order.
        testable: Whether each is of a test at all; what nothing could reject, such as a difference with one seed, takes
            no share of the error rate. `None` if all are.

    Returns:
        Adjusted p values in the same order.
    """
    if testable is not None and not all(testable):
        tested = iter(holm([p for p, counts in zip(p_values, testable, strict=True) if counts]))
        return [next(tested) if counts else 1.0 for counts in testable]
    ordered = np.argsort(p_values)
    # statsmodels does the same, but its import takes two seconds, and each call collects all of Python's garbage.
    multiplied = np.asarray(p_values)[ordered] * np.arange(len(ordered), 0, -1)
    adjusted = np.empty(len(ordered))
    adjusted[ordered] = np.minimum(np.maximum.accumulate(multiplied), 1.0)
    return [float(p) for p in adjusted]
