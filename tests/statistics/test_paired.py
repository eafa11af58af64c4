"""Paired differences against an analysis of variance by statsmodels, t tests by SciPy, and hand-made edge cases."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from lora_lightning.statistics.paired import (
    EQUAL_SEEDS,
    IDENTICAL,
    NO_VARIANCE,
    ONE_SEED,
    mean_squares,
    paired_difference,
    two_way_estimate,
    variance_components,
)
from lora_lightning.statistics.score_test import score_test


def differences(seeds: int = 4, examples: int = 30, spread: float = 0.3) -> np.ndarray:
    random = np.random.default_rng(seeds * examples)
    of_seeds, of_examples = random.normal(0, spread, (seeds, 1)), random.normal(0, 0.7, (1, examples))
    return 0.1 + of_seeds + of_examples + random.normal(0, 1, (seeds, examples))


def test_mean_squares_equal_an_analysis_of_variance() -> None:
    table = differences()
    seeds, examples = np.indices(table.shape)
    frame = pd.DataFrame({"d": table.ravel(), "s": seeds.ravel(), "i": examples.ravel()})
    anova = anova_lm(ols("d ~ C(s) + C(i)", frame).fit())
    np.testing.assert_allclose(mean_squares(table), anova["mean_sq"], rtol=1e-10)


def test_mean_squares_of_many_tables_at_once() -> None:
    tables = np.stack([differences(4, 30, spread) for spread in (0.0, 1.0)])
    np.testing.assert_allclose(np.stack(mean_squares(tables))[:, 1], mean_squares(tables[1]))


def test_interval_is_the_wider_of_both() -> None:
    table = differences(5, 40, spread=3.0)
    found = paired_difference(table)
    by_seed = stats.ttest_1samp(table.mean(axis=1), 0.0).confidence_interval(0.95)
    of_seeds, of_examples, rest = mean_squares(table)
    total = max(of_seeds + of_examples - rest, of_seeds)
    freedom = total**2 / (of_seeds**2 / 4 + of_examples**2 / 39 + rest**2 / (4 * 39))
    two_way = stats.t(freedom, table.mean(), math.sqrt(total / table.size)).interval(0.95)
    assert found.interval.low == pytest.approx(min(by_seed.low, two_way[0]))
    assert found.interval.high == pytest.approx(max(by_seed.high, two_way[1]))


def test_equal_means_of_seeds_leave_the_two_way_interval() -> None:
    table = differences(3, 50)
    table += table.mean() - table.mean(axis=1, keepdims=True)
    found = paired_difference(table)
    assert found.interval.high - found.interval.low > 0.1
    assert 0 < found.p_value < 1


def test_variance_that_cancels_does_not_vanish() -> None:
    table = np.zeros((3, 1500))
    table[0, 5], table[0, 9] = 1.0, -1.0
    error, freedom = two_way_estimate(table)
    assert error == pytest.approx(math.sqrt(2 / 3 / 1499 / 4500), rel=1e-6)
    assert freedom == 2 * 1499
    found = paired_difference(table)
    assert found.interval.low == pytest.approx(-1.96 * error, rel=1e-2)


def test_only_seeds_are_compared_with_one_column() -> None:
    means = np.array([0.01, -0.02, 0.03, 0.004])
    found = paired_difference(means[:, None])
    expected = stats.ttest_1samp(means, -0.01, alternative="greater")
    assert (found.seeds, found.examples) == (4, 0)
    assert found.p_value_above(-0.01) == pytest.approx(expected.pvalue)
    assert found.lower_bound() == pytest.approx(expected.confidence_interval(0.95).low)
    assert found.p_value == pytest.approx(stats.ttest_1samp(means, 0.0).pvalue)
    below = stats.ttest_1samp(means, 0.03, alternative="less")
    assert found.p_value_below(0.03) == pytest.approx(below.pvalue)


def test_equal_outcomes_are_identical() -> None:
    found = paired_difference(np.zeros((3, 10)), limit=1.0)
    assert (found.interval.low, found.interval.value, found.interval.high) == (0.0, 0.0, 0.0)
    assert found.note == IDENTICAL == "identical on this test set"
    assert found.p_value_above(-0.005) == found.p_value_below(0.005) == pytest.approx(0.995**10)
    assert found.p_value_above(-1.0) == 0
    assert found.p_value == found.p_value_above(0.0) == found.p_value_below(-0.1) == 1
    assert found.covered.low == -found.covered.high == found.lower_bound() == pytest.approx(0.05**0.1 - 1)


def test_equal_outcomes_without_a_known_limit_prove_nothing() -> None:
    found = paired_difference(np.zeros((3, 10**5)))
    assert found.identical
    assert found.p_value_above(-0.5) == 1
    assert found.covered.low == -math.inf


def test_equal_values_of_seeds_are_not_identical() -> None:
    found = paired_difference(np.zeros((3, 1)), limit=1.0)
    assert found.note == EQUAL_SEEDS
    assert not found.identical
    assert math.isnan(found.interval.low)
    assert found.p_value_above(-0.5) == 1


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (np.full((1, 10), 0.0), ONE_SEED),
        (np.arange(10.0)[None], ONE_SEED),
        (np.full((3, 1), 0.02), NO_VARIANCE),
        (np.array([[0.93 - 0.92], [0.92 - 0.91], [0.91 - 0.90]]), NO_VARIANCE),
        (np.ones((3, 10)), NO_VARIANCE),
    ],
)
def test_no_interval_without_variance(table: np.ndarray, note: str) -> None:
    found = paired_difference(table)
    assert found.note == note
    assert math.isnan(found.interval.low)
    assert found.p_value_above(-0.5) == found.p_value_below(0.5) == found.p_value == 1
    assert found.interval.value == pytest.approx(table.mean())


def test_rounding_of_values_is_no_variance() -> None:
    first, second = np.array([1000.1, 2000.1, 3000.1]), np.array([1000.2, 2000.2, 3000.2])
    assert paired_difference((first - second)[:, None], size=3000.2).note == NO_VARIANCE
    assert not paired_difference((first - second)[:, None]).note


def test_losses_that_all_seeds_share_are_judged_by_the_score_test() -> None:
    """Of 1,500 hits, few change: p values are the larger ones, and the interval is the wider one."""
    for lost, won in ((3, 0), (12, 12), (0, 5)):
        table = np.zeros((3, 1500))
        table[:, :lost], table[:, 1500 - won :] = -1, 1
        found, only_t = paired_difference(table, limit=1.0), paired_difference(table)
        test = score_test(table[0], 1.0)
        for bound in (-0.005, 0.002):
            assert found.p_value_above(bound) == max(only_t.p_value_above(bound), test.p_value_above(bound))
            assert found.p_value_below(bound) == max(only_t.p_value_below(bound), test.p_value_below(bound))
        assert found.p_value_above(found.interval.low) == pytest.approx(0.025, rel=1e-6)
        assert found.p_value_below(found.interval.high) == pytest.approx(0.025, rel=1e-6)
        assert found.p_value_above(found.lower_bound()) == pytest.approx(0.05, rel=1e-6)
        assert found.interval.low <= only_t.interval.low
        assert found.interval.high >= only_t.interval.high
        assert found.reversed.p_value_above(-0.001) == pytest.approx(found.p_value_below(0.001))
        assert found.reversed.interval.low == -found.interval.high


@pytest.mark.parametrize("table", [np.zeros((0, 3)), np.zeros(3), np.array([[1.0, np.nan], [0.0, 1.0]])])
def test_what_cannot_be_compared_is_refused(table: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_difference(table)


def test_variance_components_are_found_again() -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        table = random.normal(0, 0.5, (6, 1)) + random.normal(0, 1, (1, 80)) + random.normal(0, 2, (6, 80))
        parts = variance_components(table)
        found.append((parts.seeds, parts.examples, parts.rest))
    np.testing.assert_allclose(np.mean(found, axis=0), (0.25, 1.0, 4.0), rtol=0.12)


def test_shares_sum_to_one() -> None:
    parts = variance_components(differences())
    assert sum(parts.shares(4, 30).values()) == pytest.approx(1)
    assert parts.shares(4, 30)["rest"] == pytest.approx(parts.rest / 120 / sum(parts.of_mean(4, 30).values()))
