"""The change by a setting minus that by a seed: its value, its jackknife, and how often its interval holds."""

import math
from itertools import combinations

import numpy as np
import pytest

from lora_lightning.statistics.seed_noise import difference_from_seed_noise


def test_it_is_the_difference_of_means_and_leaves_each_seed_out_of_both() -> None:
    by_setting = {0: 1.0, 1: 2.0, 2: 6.0}
    by_seed = {(0, 1): 4.0, (0, 2): 5.0, (1, 2): 9.0, (1, 7): 100.0}  # 7 has no pair of settings
    found = difference_from_seed_noise(by_setting, by_seed)
    assert found.value == pytest.approx(3 - 6)
    without = np.array([4 - 9, 3.5 - 5, 1.5 - 4])
    half = 4.302652729911275 * math.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())  # t, 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half))


def test_two_seeds_have_no_interval() -> None:
    found = difference_from_seed_noise({0: 1.0, 1: 2.0}, {(0, 1): 4.0})
    assert found.value == pytest.approx(-2.5)
    assert math.isnan(found.low)
    assert math.isnan(difference_from_seed_noise({}, {}).value)


def test_the_interval_holds_about_as_often_as_it_says() -> None:
    """Adapters as points: a change by setting of its own direction, and seeds that are far apart."""
    random, seeds = np.random.default_rng(0), 5
    found, values = [], []
    for _ in range(400):
        points = random.normal(size=(seeds, 20))
        moved = points + 0.6 * random.normal(size=(seeds, 20))
        by_setting = {seed: float(np.linalg.norm(points[seed] - moved[seed])) for seed in range(seeds)}
        by_seed = {
            (i, j): float(np.linalg.norm(points[i] - points[j]) + np.linalg.norm(moved[i] - moved[j])) / 2
            for i, j in combinations(range(seeds), 2)
        }
        interval = difference_from_seed_noise(by_setting, by_seed)
        found.append(interval)
        values.append(interval.value)
    truth = np.mean(values)
    coverage = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert 0.9 < coverage < 0.995
    assert np.mean([interval.high < 0 for interval in found]) > 0.99
