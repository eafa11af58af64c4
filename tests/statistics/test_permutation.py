"""The exact permutation test against enumeration by hand, planted groups, and its error rate."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_lightning.statistics.permutation import label_permutation

Matrix = NDArray[np.float64]


def distances(points: Matrix) -> Matrix:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def slow_test(matrix: Matrix, group: int) -> tuple[float, float]:
    """Statistic and p value by definition: every ordered split, one after the other."""
    count = len(matrix)

    def statistic(first: tuple[int, ...]) -> float:
        second = [place for place in range(count) if place not in first]
        between = np.mean([matrix[i, j] for i in first for j in second])
        within = [matrix[i, j] for part in (first, second) for i, j in combinations(part, 2)]
        return float(between - np.mean(within))

    own = statistic(tuple(range(group)))
    found = [statistic(first) >= own - 1e-9 for first in combinations(range(count), group)]
    return own, float(np.mean(found))


@pytest.mark.parametrize(("first", "second"), [(2, 2), (3, 3), (2, 4), (5, 3)])
def test_it_is_the_share_of_all_splits(first: int, second: int) -> None:
    matrix = distances(np.random.default_rng(first).normal(size=(first + second, 3)))
    found = label_permutation(matrix, first)
    assert (found.statistic, found.p_value) == pytest.approx(slow_test(matrix, first))
    assert found.splits == comb(first + second, first) // (2 if first == second else 1)


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.1), (5, 1 / 126)])
def test_two_groups_far_apart_reach_the_least_p_value(seeds: int, least: float) -> None:
    points = np.random.default_rng(0).normal(size=(2 * seeds, 4))
    points[seeds:] += 50
    found = label_permutation(distances(points), seeds)
    assert found.p_value == found.least_p_value == pytest.approx(least)
    assert found.statistic > 50
    mixed = distances(points[[0, seeds, *range(1, seeds), *range(seeds + 1, 2 * seeds)]])
    assert label_permutation(mixed, seeds).p_value > 0.1


def test_without_a_difference_five_percent_are_found_wrongly() -> None:
    random = np.random.default_rng(0)
    p_values = [label_permutation(distances(random.normal(size=(8, 2))), 4).p_value for _ in range(600)]
    assert np.mean(np.array(p_values) <= 0.06) == pytest.approx(2 / 35, abs=0.03)  # of 35 splits


def test_equal_objects_show_nothing() -> None:
    assert label_permutation(np.zeros((6, 6)), 3).p_value == 1


@pytest.mark.parametrize(("matrix", "group"), [(np.zeros((3, 3)), 2), (np.full((4, 4), np.nan), 2)])
def test_too_few_objects_or_unknown_distances_are_refused(matrix: Matrix, group: int) -> None:
    with pytest.raises(ValueError, match="two groups of at least 2 objects with finite distances"):
        label_permutation(matrix, group)


def test_of_many_splits_some_are_drawn_and_that_of_the_data_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).normal(size=(21, 2))
    points[9:] += 50
    found = label_permutation(distances(points), 9)
    assert (found.splits, found.is_exact) == (100_000, False)
    assert found.p_value == found.least_p_value == 1e-5
    near = distances(np.random.default_rng(1).normal(size=(14, 2)))
    exact = label_permutation(near, 7)
    monkeypatch.setattr("lora_lightning.statistics.permutation.MOST_SPLITS", 1000)
    drawn = label_permutation(near, 7)
    assert (exact.is_exact, drawn.is_exact) == (True, False)
    assert drawn == label_permutation(near, 7)
    assert drawn.statistic == exact.statistic
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.01)
