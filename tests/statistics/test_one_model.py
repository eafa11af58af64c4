"""Differences of two states of one model: against NumPy, and against the error rate that they promise."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.special import xlogy

from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.one_model import example_difference, missing_examples
from lora_lightning.statistics.score_test import ScoreTest


def likelihood_score(gains: int, losses: int, examples: int, difference: float) -> float:
    """The score test with the share of losses found by a search for the largest likelihood."""

    def surprise(lost: float) -> float:
        gained, same = lost + difference, 1 - 2 * lost - difference
        return -(xlogy(gains, gained) + xlogy(losses, lost) + xlogy(examples - gains - losses, same))

    ends = max(0.0, -difference), (1 - difference) / 2
    lost = optimize.minimize_scalar(surprise, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    variance = examples * (2 * lost + difference - difference**2)
    return float((gains - losses - examples * difference) / np.sqrt(variance))


def hits(gains: int, losses: int, examples: int) -> NDArray[np.float64]:
    return np.repeat([1.0, -1.0, 0.0], [gains, losses, examples - gains - losses])


@pytest.mark.parametrize(
    ("gains", "losses", "examples"), [(3, 7, 500), (0, 4, 90), (12, 5, 60), (1, 0, 44), (2, 2, 30)]
)
@pytest.mark.parametrize("bound", [-0.02, -0.1, 0.05])
def test_hits_are_compared_by_the_score_test(gains: int, losses: int, examples: int, bound: float) -> None:
    found = example_difference(hits(gains, losses, examples), limit=1.0)
    expected = stats.norm.sf(likelihood_score(gains, losses, examples, bound))
    assert found.p_value_above(bound) == pytest.approx(expected, rel=1e-3)
    assert found.p_value_below(bound) == pytest.approx(1 - expected, rel=1e-3)
    assert found.interval.low < found.interval.value < found.interval.high
    for end in (found.interval.low, found.interval.high):
        assert abs(likelihood_score(gains, losses, examples, end)) == pytest.approx(1.96, abs=2e-3)


@pytest.mark.parametrize(
    ("examples", "is_proven"), [(24, False), (435, False), (538, False), (540, True), (3000, True)]
)
def test_no_change_on_few_examples_is_no_proof(examples: int, is_proven: bool) -> None:
    found = example_difference(np.zeros(examples), limit=1.0)
    assert (found.p_value_above(-0.005) <= ERROR_RATE) is is_proven


@pytest.mark.parametrize("discordant", [0.0051, 0.006, 0.02, 0.1])
@pytest.mark.parametrize("examples", [300, 1000, 3000])
def test_a_loss_of_the_margin_is_rarely_proven_to_be_less(discordant: float, examples: int) -> None:
    margin, repeats = 0.005, 4000
    loss, gain = (discordant + margin) / 2, (discordant - margin) / 2
    counts = np.random.default_rng(0).multinomial(examples, [gain, loss, 1 - gain - loss], size=repeats)
    values = np.array([-1.0, 0.0, 1.0])
    different, times = np.unique(counts[:, [1, 2, 0]], axis=0, return_counts=True)
    proven = sum(
        time
        for shares, time in zip(different / examples, times, strict=True)
        if ScoreTest(values, shares, examples).p_value_above(-margin) <= ERROR_RATE
    )
    assert proven / repeats <= ERROR_RATE + 0.012  # counts are whole numbers, and the test is not exact


def test_outcomes_without_bounds_count_with_one_unseen_loss() -> None:
    differences = np.array([0.01, -0.02, 0.005, 0.0, 0.01])
    found = example_difference(differences)
    with_loss = np.append(differences, -0.04)
    low, _ = stats.t.interval(0.95, 5, with_loss.mean(), stats.sem(with_loss))
    _, high = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences))
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), rel=1e-12)
    for bound in (-0.05, -0.01):
        above = stats.ttest_1samp(with_loss, bound, alternative="greater").pvalue
        below = stats.ttest_1samp(differences, bound, alternative="less").pvalue
        assert (found.p_value_above(bound), found.p_value_below(bound)) == pytest.approx((above, below), rel=1e-9)
    nothing = example_difference(np.zeros(9))
    assert nothing.note
    assert not nothing.identical
    assert nothing.p_value_above(-0.5) == 1.0
    assert example_difference(np.full(9, 0.25)).note
    assert example_difference(np.array([0.1])).note


@pytest.mark.parametrize("examples", [10, 20, 60])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_losses_that_are_rarely_large_are_rarely_proven_to_be_below_the_margin(sigma: float, examples: int) -> None:
    losses = np.random.default_rng(0).lognormal(0.0, sigma, (400, examples))
    margin = float(np.exp(sigma**2 / 2))  # their mean
    proven = [example_difference(-each).p_value_above(-margin) <= ERROR_RATE for each in losses]
    by_a_t_test = stats.ttest_1samp(-losses, -margin, axis=1, alternative="greater").pvalue <= ERROR_RATE
    assert np.mean(proven) <= ERROR_RATE
    assert np.mean(by_a_t_test) > ERROR_RATE


def test_missing_examples_have_the_power_that_they_promise() -> None:
    rng = np.random.default_rng(1)
    first = example_difference(rng.normal(0.0, 1.0, 50))
    needed = missing_examples(first, 0.5)
    assert needed is not None
    error, mean = first.estimates[0][0] * np.sqrt(50), min(0.0, first.interval.value)
    power = np.mean(
        [example_difference(rng.normal(mean, error, needed)).p_value_above(-0.5) <= ERROR_RATE for _ in range(2000)]
    )
    assert 0.75 < power < 0.95
    assert missing_examples(example_difference(rng.normal(-3.0, 1.0, 50)), 0.5) is None
    assert missing_examples(example_difference(np.array([0.01, -0.02, 0.005, 0.0, 0.01])), 50.0) == 2
