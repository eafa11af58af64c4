"""An exact permutation test: do two groups of objects differ by more than objects of one group do?"""

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

MOST_SPLITS = 200_000
ROUNDING = 1e-12  # statistics that differ by less, relative to their size, are equal


@dataclass(frozen=True)
class PermutationTest:
    """The result of a permutation test of labels.

    Attributes:
        statistic: Mean distance between the groups minus mean distance within them.
        p_value: The share of all splits whose statistic is at least as large.
        splits: Number of splits, that of the data included.
    """

    statistic: float
    p_value: float
    splits: int

    @property
    def least_p_value(self) -> float:
        """The smallest p value that so many objects can reach."""
        return 1 / self.splits


def label_permutation(distances: NDArray[np.float64], group: int) -> PermutationTest:
    """Tests whether two groups differ: under the hypothesis that labels mean nothing, every split is equally likely.

    All objects must be independent of each other, such as adapters that were trained with different seeds; pairs with a
    common seed would be alike for another reason than their labels.

    Args:
        distances: (objects, objects), symmetric, not negative, the first group's objects first.
        group: Size of the first group; both groups have at least 2.

    Returns:
        The exact one-sided test. Groups of equal size can be exchanged, so each split counts once.

    Raises:
        ValueError: If a group has fewer than 2 objects, a distance is not finite, or there are more than 200,000
            splits.
    """
    count = len(distances)
    if group < 2 or count - group < 2 or not np.isfinite(distances).all():  # noqa: PLR2004
        msg = f"two groups of at least 2 objects with finite distances are needed, not {group} and {count - group}"
        raise ValueError(msg)
    equal = 2 * group == count
    splits = comb(count, group) // (2 if equal else 1)
    if splits > MOST_SPLITS:
        msg = f"groups of {group} and {count - group} objects have {splits:,} splits, and at most {MOST_SPLITS:,} fit"
        raise ValueError(msg)
    # Of two groups of the same size, the one with the first object is called the first.
    chosen = combinations(range(1, count), group - 1) if equal else combinations(range(count), group)
    members = np.zeros((splits, count))
    for row, places in enumerate(chosen):
        members[row, list(places) + ([0] if equal else [])] = 1.0
    statistics = _separations(distances, members, group)
    own = np.zeros((1, count))
    own[0, :group] = 1.0
    observed = float(_separations(distances, own, group)[0])
    at_least = statistics >= observed - ROUNDING * np.abs(distances).max()
    return PermutationTest(observed, float(at_least.mean()), splits)


def _separations(distances: NDArray[np.float64], members: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    """Mean distance between groups minus mean distance within, for each row of memberships."""
    others = len(distances) - group
    between = ((members @ distances) * (1 - members)).sum(axis=1)
    within = (distances.sum() - np.trace(distances)) / 2 - between
    pairs = group * (group - 1) / 2 + others * (others - 1) / 2
    return np.asarray(between / (group * others) - within / pairs)
