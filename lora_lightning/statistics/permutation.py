"""A permutation test, exact for few splits: do two groups of objects differ more than objects of one group?"""

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

MOST_SPLITS = 200_000
DRAWN, SEED = 99_999, 0  # random splits beside that of the data, where there are more
LEAST_GROUP = 2
ROUNDING = 1e-12  # statistics that differ by less, relative to their size, are equal


@dataclass(frozen=True)
class PermutationTest:
    """The result of a permutation test of labels.

    Attributes:
        statistic: Mean distance between the groups minus mean distance within them.
        p_value: The share of splits whose statistic is at least as large.
        splits: Number of splits, that of the data included.
        is_exact: Whether they are all splits, and not that of the data with random ones.
    """

    statistic: float
    p_value: float
    splits: int
    is_exact: bool = True

    @property
    def least_p_value(self) -> float:
        """The smallest p value that so many objects can reach."""
        return 1 / self.splits


def number_of_splits(first: int, second: int) -> int:
    """In how many ways objects can be split into two groups of these sizes; equal groups can be exchanged."""
    return comb(first + second, first) // (2 if first == second else 1)


def label_permutation(distances: NDArray[np.float64], group: int) -> PermutationTest:
    """Tests whether two groups differ: under the hypothesis that labels mean nothing, every split is equally likely.

    All objects must be independent of each other, such as adapters that were trained with different seeds; pairs with a
    common seed would be alike for another reason than their labels.

    Args:
        distances: (objects, objects), symmetric, not negative, the first group's objects first.
        group: Size of the first group; both groups have at least 2.

    Returns:
        The one-sided test, exact up to 200,000 splits; groups of equal size can be exchanged, so each split counts
        once. Of more splits, 99,999 are drawn at random, always the same: p = (b + 1) / (99,999 + 1), where b of them
        are at least as far apart as the data (Phipson and Smyth 2010; as SciPy's `permutation_test`).

    Raises:
        ValueError: If a group has fewer than 2 objects, or a distance is not finite.
    """
    count = len(distances)
    if min(group, count - group) < LEAST_GROUP or not np.isfinite(distances).all():
        groups = f"{group} and {count - group}"
        msg = f"two groups of at least {LEAST_GROUP} objects with finite distances are needed, not {groups}"
        raise ValueError(msg)
    equal = 2 * group == count
    splits = number_of_splits(group, count - group)
    own = np.zeros((1, count))
    own[0, :group] = 1.0
    if is_exact := splits <= MOST_SPLITS:
        # Of two groups of the same size, the one with the first object is called the first.
        chosen = combinations(range(1, count), group - 1) if equal else combinations(range(count), group)
        members = np.zeros((splits, count))
        for row, places in enumerate(chosen):
            members[row, list(places) + ([0] if equal else [])] = 1.0
    else:
        drawn = np.random.default_rng(SEED).permuted(np.repeat(own, DRAWN, axis=0), axis=1)
        members = np.concatenate([own, drawn])
    statistics = _separations(distances, members, group)
    observed = float(_separations(distances, own, group)[0])
    at_least = statistics >= observed - ROUNDING * np.abs(distances).max()
    return PermutationTest(observed, float(at_least.mean()), len(members), is_exact)


def _separations(distances: NDArray[np.float64], members: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    """Mean distance between groups minus mean distance within, for each row of memberships."""
    others = len(distances) - group
    between = ((members @ distances) * (1 - members)).sum(axis=1)
    within = (distances.sum() - np.trace(distances)) / 2 - between
    pairs = group * (group - 1) / 2 + others * (others - 1) / 2
    return np.asarray(between / (group * others) - within / pairs)
