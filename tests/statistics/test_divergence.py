"""The summary of predictions that differ: values by definition, errors against simulation over examples."""

import math

import numpy as np
import pytest

from lora_lightning.statistics.divergence import DivergenceSummary, summarize_divergence


def drawn(random: np.random.Generator, examples: int) -> DivergenceSummary:
    """Tokens of one text resemble each other."""
    counts = random.integers(1, 12, examples)
    texts = np.repeat(np.arange(examples), counts)
    level = random.gamma(2.0, 0.05, examples)[texts]
    divergences = level * random.exponential(1.0, len(texts))
    changes = 0.3 * (level - 0.1) + 0.05 * random.normal(size=len(texts))
    losses = 0.5 * (level - 0.1) + 0.1 * random.normal(size=len(texts))
    return summarize_divergence(divergences, changes, losses, random.random(len(texts)) > level, texts)


def test_values_are_those_of_the_definitions() -> None:
    divergences, texts = np.array([0.0, 0.1, 0.3, 0.9]), np.array([0, 0, 1, 2])
    changes, losses = np.array([0.1, -0.3, np.nan, 0.2]), np.array([0.5, -0.1, np.nan, 0.2])
    found = summarize_divergence(divergences, changes, losses, np.array([True, True, False, True]), texts)
    assert found.mean_kl.value == pytest.approx(0.325)
    assert found.median_kl.value == pytest.approx(0.2)
    assert found.max_kl.value == 0.9
    assert math.isnan(found.max_kl.error)
    assert found.mean_change_of_p.value == pytest.approx(0)
    assert found.rms_change_of_p.value == pytest.approx(math.sqrt((0.01 + 0.09 + 0.04) / 3))
    assert found.same_top.value == 0.75
    assert found.perplexity_ratio.value == pytest.approx(math.exp(0.2))
    assert (found.rows, found.examples) == (4, 3)


@pytest.mark.parametrize("rows", [1, 99, 100, 999, 1000])
def test_a_quantile_beyond_which_there_is_no_row_is_not_known(rows: int) -> None:
    """Of 256 predictions, 99.9 % would be the maximum under another name."""
    divergences, places = np.random.default_rng(0).exponential(size=rows), np.arange(rows)
    found = summarize_divergence(divergences, divergences, divergences, divergences > 1, places)
    assert found.median_kl.value == pytest.approx(np.quantile(divergences, 0.5))
    for estimate, share, fewest in ((found.kl_99, 0.99, 100), (found.kl_99_9, 0.999, 1000)):
        if rows < fewest:
            assert math.isnan(estimate.value)
            assert math.isnan(estimate.error)
        else:
            assert estimate.value == pytest.approx(np.quantile(divergences, share))
            assert estimate.value < found.max_kl.value
            assert estimate.error > 0


def test_errors_are_those_of_new_examples() -> None:
    random = np.random.default_rng(0)
    found = [drawn(random, 60) for _ in range(120)]
    for name in ("mean_kl", "mean_change_of_p", "rms_change_of_p", "same_top", "perplexity_ratio"):
        spread = np.std([getattr(each, name).value for each in found])
        assert np.mean([getattr(each, name).error for each in found]) == pytest.approx(spread, rel=0.2), name
    for name in ("median_kl", "kl_99"):
        spread = np.std([getattr(each, name).value for each in found])
        assert np.mean([getattr(each, name).error for each in found]) == pytest.approx(spread, rel=0.45), name


def test_equal_models_little_data_and_none() -> None:
    zeros, texts = np.zeros(6), np.arange(6) // 2
    same = summarize_divergence(zeros, zeros, zeros, np.ones(6, bool), texts)
    assert same.mean_kl.value == same.mean_kl.error == same.rms_change_of_p.value == same.median_kl.error == 0
    assert same.perplexity_ratio.value == same.same_top.value == 1
    one = summarize_divergence(zeros + 1, zeros, zeros, np.ones(6, bool), np.zeros(6, np.int64))
    assert one.mean_kl.value == 1
    assert math.isnan(one.mean_kl.error)
    assert math.isnan(one.median_kl.error)
    none = summarize_divergence(zeros[:0], zeros[:0], zeros[:0], np.ones(0, bool), texts[:0])
    assert all(math.isnan(getattr(none, name).value) for name in ("mean_kl", "median_kl", "max_kl", "same_top"))
