"""Sums up how two models' predictions differ, with standard errors that count examples and not tokens.

The measures and their names are those of llama.cpp's `--kl-divergence`. Its errors take all tokens for independent;
the tokens of one text are not, so here whole examples are left out or drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 200  # of examples, for the errors of quantiles
SEED = 0
MEDIAN, ROUNDING = 0.5, 1e-9
QUANTILES = {"median": MEDIAN, "99 %": 0.99, "99.9 %": 0.999}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error.

    Attributes:
        value: The number; NaN if it is not known.
        error: Its standard error over examples; NaN if there is none.
    """

    value: float
    error: float = float("nan")


@dataclass(frozen=True)
class DivergenceSummary:
    """How two models' predictions differ, over all rows.

    Attributes:
        mean_kl: Mean Kullback-Leibler divergence of the second model from the first, in nats.
        median_kl: Its median.
        kl_99: Its 99 % quantile; NaN for fewer than 100 rows.
        kl_99_9: Its 99.9 % quantile; NaN for fewer than 1,000 rows.
        max_kl: The largest one, which has no standard error.
        mean_change_of_p: Mean of the second model's probability of the label minus the first's.
        rms_change_of_p: The root of the mean square of this difference.
        same_top: Share of rows for which both find the same choice most likely.
        perplexity_ratio: The second model's perplexity divided by the first's.
        rows: How many rows were compared.
        examples: Of how many examples they are.
    """

    mean_kl: Estimate
    median_kl: Estimate
    kl_99: Estimate
    kl_99_9: Estimate
    max_kl: Estimate
    mean_change_of_p: Estimate
    rms_change_of_p: Estimate
    same_top: Estimate
    perplexity_ratio: Estimate
    rows: int
    examples: int


def summarize_divergence(
    divergences: Array,
    probability_changes: Array,
    loss_changes: Array,
    same_top: NDArray[np.bool_],
    examples: NDArray[np.int64],
) -> DivergenceSummary:
    """Sums up the differences of predictions.

    Args:
        divergences: (rows,), nats.
        probability_changes: (rows,); NaN for rows without a label, which are left out.
        loss_changes: (rows,), nats; NaN for rows without a label, which are left out.
        same_top: (rows,).
        examples: (rows,): number of the example that each row belongs to.

    Returns:
        The summary; values are NaN without rows, errors are NaN for fewer than two examples.
    """
    median, kl_99, kl_99_9 = _quantiles(divergences, examples)
    return DivergenceSummary(
        _of_mean(divergences, examples),
        median,
        kl_99,
        kl_99_9,
        Estimate(float(divergences.max(initial=-np.inf)) if len(divergences) else float("nan")),
        _of_mean(probability_changes, examples),
        _of_mean(probability_changes**2, examples, np.sqrt),
        _of_mean(same_top.astype(np.float64), examples),
        _of_mean(loss_changes, examples, np.exp),
        rows=len(divergences),
        examples=len(np.unique(examples)),
    )


def _of_mean(values: Array, examples: NDArray[np.int64], function: Callable[[Array], Array] = lambda x: x) -> Estimate:
    """A function of the mean over rows, with the jackknife's error over examples (Efron & Tibshirani 1993, 11.5)."""
    known = ~np.isnan(values)
    if not known.any():
        return Estimate(float("nan"))
    values, places = values[known], np.unique(examples[known], return_inverse=True)[1]
    sums, counts = np.bincount(places, weights=values), np.bincount(places)
    value = float(function(np.asarray(sums.sum() / counts.sum())))
    n = len(sums)
    if n < 2:  # noqa: PLR2004  # one example has no variance
        return Estimate(value)
    without = function((sums.sum() - sums) / (counts.sum() - counts))
    return Estimate(value, float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())))


def _quantiles(values: Array, examples: NDArray[np.int64]) -> list[Estimate]:
    """Quantiles over rows, with the bootstrap's errors over examples, since the jackknife fails for quantiles.

    A quantile beyond which there is not a single row is the maximum under another name, so it is NaN.
    """
    shares = np.array(list(QUANTILES.values()))
    if not len(values):
        return [Estimate(float("nan"))] * len(shares)
    is_known = (shares <= MEDIAN) | (len(values) * (1 - shares) >= 1 - ROUNDING)
    found = np.where(is_known, np.quantile(values, shares), np.nan)
    order = np.argsort(values)
    places = np.unique(examples, return_inverse=True)[1][order]
    count = int(places.max()) + 1
    if count < 2:  # noqa: PLR2004
        return [Estimate(float(value)) for value in found]
    random = np.random.default_rng(SEED)
    drawn = np.empty((DRAWS, len(shares)))
    for row in drawn:
        times = np.bincount(random.integers(count, size=count), minlength=count)
        reached = np.cumsum(times[places])  # rows up to each value, in the drawn examples
        row[:] = values[order][np.searchsorted(reached, shares * reached[-1])]
    errors = np.where(is_known, drawn.std(axis=0, ddof=1), np.nan)
    return [Estimate(float(value), float(error)) for value, error in zip(found, errors, strict=True)]
