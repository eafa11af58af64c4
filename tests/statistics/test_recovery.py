"""The recovery ratio and its interval, against loops in NumPy and simulated coverage."""

import math

import numpy as np
import pytest

from lora_lightning.statistics import Interval, jackknife_interval, recovery_ratio

RNG = np.random.default_rng(0)


def simulate(n: int, loss: float, gain: float = 1.0, rng: np.random.Generator = RNG) -> list[np.ndarray]:
    """Scores of three states whose true recovery ratio is 1 - loss."""
    base = rng.normal(size=n)
    gains = gain * rng.gamma(2, 0.5, size=n)
    return [base, base + gains, base + (1 - loss) * gains + rng.normal(scale=0.05, size=n)]


def test_it_is_the_jackknife_written_as_a_loop() -> None:
    base, adapted, merged = simulate(30, 0.1)
    weights = RNG.integers(1, 9, size=30).astype(float)
    found = recovery_ratio(base, adapted, merged, weights)

    def ratio(keep: np.ndarray) -> float:
        b, a, m = (np.average(x[keep], weights=weights[keep]) for x in (base, adapted, merged))
        return (m - b) / (a - b)

    left = np.array([ratio(np.arange(30) != i) for i in range(30)])
    error = math.sqrt(29 / 30 * ((left - left.mean()) ** 2).sum())
    assert found.ratio.value == pytest.approx(ratio(np.arange(30)), rel=1e-12)
    assert found.ratio.high - found.ratio.low == pytest.approx(2 * 2.045229642 * error, rel=1e-8)  # t, 29 degrees
    assert found.gain.value == pytest.approx(np.average(adapted - base, weights=weights), rel=1e-12)


def test_a_mean_has_the_interval_of_the_t_test() -> None:
    x = RNG.normal(size=20)
    found = jackknife_interval(x.mean(), (x.sum() - x) / 19)
    half = 2.093024054 * x.std(ddof=1) / math.sqrt(20)
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), rel=1e-8)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = [recovery_ratio(*simulate(60, 0.1, rng=rng)).ratio.contains(0.9) for _ in range(1000)]
    assert 0.93 < np.mean(held) < 0.97


def test_a_gain_that_may_be_nothing_is_not_judged() -> None:
    base = RNG.normal(size=50)
    found = recovery_ratio(base, base + RNG.normal(scale=0.1, size=50), base)
    assert not found.judged
    assert str(found) == "recovery ratio not judged (the adapter's gain over its base may be 0)"
    clear = recovery_ratio(*simulate(50, 0.2))
    assert clear.judged
    assert "recovery ratio 0.8" in str(clear) or "recovery ratio 0.7" in str(clear)


def test_a_lost_adapter_and_a_kept_one_are_told_apart() -> None:
    base, adapted, _ = simulate(50, 0)
    assert recovery_ratio(base, adapted, adapted).ratio == Interval(1.0, 1.0, 1.0)
    assert recovery_ratio(base, adapted, base).ratio.value == 0
    worse = recovery_ratio(adapted, base, base)  # an adapter that does harm
    assert worse.judged
    assert not worse.has_gain
    assert worse.gain.high < 0
    assert str(worse).startswith("recovery ratio not judged (the adapter is worse than its base: gain -")


def test_too_few_examples_and_nan_have_no_interval() -> None:
    one = recovery_ratio(*(np.array([x]) for x in (0.0, 1.0, 1.0)))
    assert one.ratio.value == 1
    assert math.isnan(one.ratio.low)
    assert not one.judged
    assert math.isnan(recovery_ratio(*(np.empty(0) for _ in range(3))).ratio.value)
    base, adapted, merged = simulate(9, 0)
    merged[3] = np.nan
    assert math.isnan(recovery_ratio(base, adapted, merged).ratio.value)
    base[3] = np.nan  # an example that says nothing in any state
    assert recovery_ratio(base, adapted, merged).judged
