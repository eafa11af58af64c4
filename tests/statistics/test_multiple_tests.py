"""The fixed sequence, Holm's correction and the Pareto front against definitions worked by hand."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from lora_lightning.statistics.multiple_tests import fixed_sequence, holm
from lora_lightning.statistics.pareto import pareto_front


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [([], 0), ([0.05], 1), ([0.051], 0), ([0.01, 0.04, 0.2, 0.001], 2), ([0.01, float("nan"), 0.01], 1)],
)
def test_fixed_sequence_stops_at_the_first_failure(p_values: list[float], rejected: int) -> None:
    assert fixed_sequence(p_values) == rejected


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def test_what_cannot_be_tested_takes_no_share() -> None:
    assert holm([0.04, 1.0, 0.03], [True, False, True]) == pytest.approx([0.06, 1.0, 0.06])
    assert holm([0.04, 0.01], [False, False]) == [1.0, 1.0]


def test_holm_equals_statsmodels() -> None:
    for count in (1, 2, 15):
        p_values = np.random.default_rng(count).random(count) ** 3
        assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_pareto_front_by_brute_force() -> None:
    random = np.random.default_rng(0)
    quality, cost = random.integers(0, 6, 30), random.integers(0, 6, 30)
    for place, kept in enumerate(pareto_front(quality, cost)):
        better = (quality >= quality[place]) & (cost <= cost[place])
        better &= (quality > quality[place]) | (cost < cost[place])
        assert kept is not bool(better.any())


def test_pareto_front_leaves_out_the_unknown() -> None:
    assert pareto_front([1.0, 2.0, 3.0], [1.0, float("nan"), 3.0]) == [True, False, True]
