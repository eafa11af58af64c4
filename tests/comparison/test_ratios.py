"""Ratios are taken within turns, against numbers worked out by hand."""

import pytest
from comparison.ratios import is_reached, ratios, spread, turn_ratio


def test_the_median_of_the_ratios_is_not_the_ratio_of_the_medians() -> None:
    turns = [{"ours": 10.0, "peer": 10.0}, {"ours": 20.0, "peer": 10.0}, {"ours": 30.0, "peer": 40.0}]
    found = ratios(turns, ["ours"], ["peer"], higher_is_better=True)
    assert found == [1.0, 2.0, 0.75]
    summary = spread(found)
    assert (summary.median, summary.low, summary.high, summary.turns) == (1.0, 0.75, 2.0, 3)  # the medians' is 2


def test_the_best_command_of_each_side_counts() -> None:
    assert turn_ratio([3.0, 6.0], [2.0, 5.0], higher_is_better=True) == pytest.approx(6 / 5)
    assert turn_ratio([3.0, 6.0], [2.0, 5.0], higher_is_better=False) == pytest.approx(3 / 2)


def test_a_goal_is_reached_from_its_own_side() -> None:
    assert is_reached(2.5, 2.5, higher_is_better=True)
    assert not is_reached(2.4, 2.5, higher_is_better=True)
    assert is_reached(0.3, 0.4, higher_is_better=False)
    assert not is_reached(0.5, 0.4, higher_is_better=False)
