"""The Pareto front: which configurations no other one beats in quality and cost at once."""

import math
from collections.abc import Sequence

NO_TEST = "The front compares means and is no test: what lies close together may differ by chance."


def pareto_front(qualities: Sequence[float], costs: Sequence[float]) -> list[bool]:
    """Finds the configurations that no other one dominates.

    Args:
        qualities: Larger is better; NaN if unknown.
        costs: Smaller is better; NaN if unknown.

    Returns:
        Whether no other configuration is at least as good and at most as expensive, and better in one of both; false
        for a configuration with an unknown number.
    """
    points = list(zip(qualities, costs, strict=True))

    def dominated(quality: float, cost: float) -> bool:
        return any(q >= quality and c <= cost and (q > quality or c < cost) for q, c in points)

    return [not math.isnan(quality + cost) and not dominated(quality, cost) for quality, cost in points]
