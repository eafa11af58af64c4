"""The ratio of two paired means: Fieller's formula, chance of examples, and what has no interval."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from lora_lightning.statistics.paired import paired_difference
from lora_lightning.statistics.ratio import ratio_of_means


def fieller(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float]:
    """The roots of (p - R w)^2 = t^2 (var p - 2 R cov + R^2 var w) / n, in closed form."""
    n = len(parts)
    (pp, pw), (_, ww) = np.cov(parts, wholes) / n
    square = student.ppf(0.975, n - 1) ** 2
    p, w = parts.mean(), wholes.mean()
    low, high = sorted(np.roots([w**2 - square * ww, -2 * (p * w - square * pw), p**2 - square * pp]).real)
    return low, high


def test_with_seeds_alone_it_is_fiellers_formula() -> None:
    random = np.random.default_rng(0)
    wholes = 0.08 + 0.01 * random.normal(size=5)
    parts = 0.6 * wholes + 0.01 * random.normal(size=5)
    for sign in (1, -1):
        found = ratio_of_means(sign * parts[:, None], sign * wholes[:, None])
        assert found.value == pytest.approx(parts.mean() / wholes.mean())
        assert (found.low, found.high) == pytest.approx(fieller(parts, wholes), rel=1e-6)


def test_chance_of_examples_counts_even_if_seeds_agree() -> None:
    """All seeds answer alike, so that seeds alone would call the ratio exact."""
    random = np.random.default_rng(1)
    wholes = (random.random(400) < 0.3).astype(float)
    parts = wholes * (random.random(400) < 0.6)
    jitter = 1e-6 * random.normal(size=(3, 400))
    found = ratio_of_means(parts + jitter, np.stack([wholes] * 3))
    assert found.low < found.value - 0.05
    assert found.high > found.value + 0.05
    for end in (found.low, found.high):
        assert paired_difference(parts + jitter - end * wholes).p_value == pytest.approx(0.05, abs=1e-4)


def test_an_interval_of_seeds_and_examples_covers_the_true_ratio() -> None:
    random = np.random.default_rng(2)
    hits = []
    for _ in range(60):
        wholes = 0.1 + 0.02 * random.normal(size=(4, 1)) + 0.3 * random.normal(size=60) / 2
        noise = 0.02 * random.normal(size=(4, 1)) + 0.1 * random.normal(size=60) + 0.1 * random.normal(size=(4, 60))
        found = ratio_of_means(0.5 * wholes + noise, wholes)
        hits.append(found.contains(0.5))
    assert np.mean(hits) > 0.87  # nominal 0.95; 2.8 standard errors


@pytest.mark.parametrize(
    "wholes",
    [np.zeros((3, 1)), np.array([[0.1], [-0.1], [0.05]]), np.array([[0.1]]), np.full((3, 1), 0.5)],
    ids=["none", "not told from 0", "one seed", "no variance"],
)
def test_without_a_whole_there_is_no_interval(wholes: np.ndarray) -> None:
    found = ratio_of_means(0.5 * np.ones_like(wholes), wholes)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_equal_parts_are_exact() -> None:
    wholes = np.array([[0.1], [0.2], [0.15]])
    wholes = wholes + 0.01 * np.random.default_rng(0).normal(size=(3, 20))
    found = ratio_of_means(0 * wholes, wholes)
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(("seeds", "examples"), [(3, 50), (3, 500)])
def test_outcomes_of_0_and_1_have_intervals_of_a_plausible_width(seeds: int, examples: int) -> None:
    """Three mean squares may cancel; degrees of freedom near 0 gave intervals of 1e17, and a search without an end."""
    generator = np.random.default_rng(10)
    shares = []
    for _ in range(150):
        full, quantized, chosen = ((generator.random((seeds, examples)) < p) * 1.0 for p in (0.9, 0.6, 0.8))
        shares.append(ratio_of_means(chosen - quantized, full - quantized))
    told = [share for share in shares if not np.isnan(share.low)]
    assert len(told) > 50
    assert all(share.low <= share.value <= share.high for share in told)
    assert max(share.high - share.low for share in told) < 40


def test_an_interval_keeps_the_degrees_of_freedom_of_its_seeds() -> None:
    generator = np.random.default_rng(1)
    for _ in range(300):
        table = (generator.random((3, 200)) < 0.9) * 1.0 - (generator.random((3, 200)) < 0.85)
        interval = paired_difference(table).interval
        assert interval.high - interval.value < 1
