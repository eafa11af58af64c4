"""Jackknife pseudo-values: one number per test example for metrics that are no mean over examples.

Pseudo-value i is metric + (n - 1) * (mean of the metric without one example - metric without example i), so that their
mean is the metric itself and their variance that of the jackknife (Tukey 1958). Every metric without an example is
computed in closed form. Functions return `None` where deleting one example may leave the metric undefined or too
coarse to be linearized: then only seeds can be compared.
"""

import numpy as np
from numpy.typing import NDArray

from lora_lightning.statistics.jackknife import weighted_means

EXAMPLES_PER_CLASS = 5  # with fewer, the F1 score of a class jumps when one example is left out
PseudoValues = NDArray[np.float64] | None


def pseudo_values(value: float, without_one: NDArray[np.float64]) -> PseudoValues:
    """Computes pseudo-values from a metric of all examples and without each in turn.

    Args:
        value: The metric of all examples.
        without_one: shape (examples,), float64: the metric without each example.

    Returns:
        shape (examples,), float64, with mean `value`; `None` if a number is not finite.
    """
    if not np.isfinite(value) or not np.isfinite(without_one).all():
        return None
    return np.asarray(value + (len(without_one) - 1) * (without_one.mean() - without_one))


def weighted_mean_pseudo_values(values: NDArray[np.float64], weights: NDArray[np.float64]) -> PseudoValues:
    """Computes pseudo-values of a weighted mean, such as the log perplexity: a mean over tokens of documents.

    Args:
        values: shape (examples,), float64, such as the mean loss of each document.
        weights: shape (examples,), float64, at least 0, such as the number of tokens of each document.

    Returns:
        shape (examples,), float64; `None` with fewer than 2 examples of positive weight.
    """
    if np.count_nonzero(weights) < 2:  # noqa: PLR2004
        return None
    return pseudo_values(*weighted_means(values, weights))


def auroc_pseudo_values(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> PseudoValues:
    """Computes pseudo-values of the area under the ROC curve; ties count half.

    Args:
        labels: shape (examples,), bool: which examples are positive.
        scores: shape (examples,), floating: larger for positive examples.

    Returns:
        shape (examples,), float64; `None` with fewer than 2 positive or 2 negative examples.
    """
    positive, negative = int(labels.sum()), int((~labels).sum())
    if min(positive, negative) < 2 or np.isnan(scores).any():  # noqa: PLR2004
        return None
    won = np.empty(len(scores))  # pairs in which a positive example has the larger score, by example of the pair
    won[labels] = _count_below(scores[labels], scores[~labels])
    won[~labels] = positive - _count_below(scores[~labels], scores[labels])
    total = won[labels].sum()
    pairs_left = np.where(labels, (positive - 1) * negative, positive * (negative - 1))
    return pseudo_values(total / (positive * negative), (total - won) / pairs_left)


def _count_below(scores: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts how many of the others are below each score; equal ones count half."""
    ordered = np.sort(others)
    return np.asarray((np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2)


def f1_pseudo_values(labels: NDArray[np.bool_], predictions: NDArray[np.bool_]) -> PseudoValues:
    """Computes pseudo-values of the F1 score of the positive class.

    Args:
        labels: shape (examples,), bool.
        predictions: shape (examples,), bool.

    Returns:
        shape (examples,), float64; `None` with fewer than 5 positive examples.
    """
    if labels.sum() < EXAMPLES_PER_CLASS:
        return None
    hits = labels & predictions
    sizes = labels.astype(np.float64) + predictions
    return pseudo_values(2 * hits.sum() / sizes.sum(), 2 * (hits.sum() - hits) / (sizes.sum() - sizes))


def macro_f1_pseudo_values(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> PseudoValues:
    """Computes pseudo-values of the unweighted mean of the F1 scores of all classes.

    Args:
        labels: shape (examples,), integers from 0.
        predictions: shape (examples,), integers from 0.

    Returns:
        shape (examples,), float64; `None` if a class that occurs in labels or predictions has fewer than 5 labels.
    """
    count = int(max(labels.max(initial=0), predictions.max(initial=0))) + 1
    labeled, predicted = np.bincount(labels, minlength=count), np.bincount(predictions, minlength=count)
    present = (labeled + predicted) > 0
    if not present.any() or labeled[present].min() < EXAMPLES_PER_CLASS:
        return None
    hits = np.bincount(labels[labels == predictions], minlength=count)
    sizes = np.maximum(labeled + predicted, 1)
    scores = 2 * hits / sizes
    right = labels == predictions
    # An example changes the scores of its label and of its prediction; if they are the same, of one class.
    changed_label = np.where(
        right, 2 * (hits[labels] - 1) / (sizes[labels] - 2), 2 * hits[labels] / (sizes[labels] - 1)
    )
    changed_prediction = np.where(right, 0.0, 2 * hits[predictions] / (sizes[predictions] - 1) - scores[predictions])
    without_one = scores.sum() + changed_label - scores[labels] + changed_prediction
    return pseudo_values(scores.sum() / present.sum(), without_one / present.sum())


def matthews_pseudo_values(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> PseudoValues:
    """Computes pseudo-values of the Matthews correlation, for any number of classes.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", R_K.

    Args:
        labels: shape (examples,), integers from 0.
        predictions: shape (examples,), integers from 0.

    Returns:
        shape (examples,), float64; `None` if a class has fewer than 5 labels, or all predictions are equal.
    """
    count = int(max(labels.max(initial=0), predictions.max(initial=0))) + 1
    labeled, predicted = np.bincount(labels, minlength=count), np.bincount(predictions, minlength=count)
    if labeled.max(initial=0) == 0 or labeled[labeled > 0].min() < EXAMPLES_PER_CLASS:
        return None
    right = labels == predictions
    both, of_labels, of_predictions = labeled @ predicted, labeled @ labeled, predicted @ predicted

    def correlation(hits: NDArray[np.int64], total: int, changes: tuple[NDArray[np.int64], ...]) -> NDArray[np.float64]:
        cross, squared_labels, squared_predictions = changes
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(
                (hits * total - both - cross)
                / np.sqrt(  # as floats: from 60,000 examples on, the product of both is too large for an integer
                    1.0 * (total**2 - of_predictions - squared_predictions) * (total**2 - of_labels - squared_labels)
                )
            )

    zero = np.zeros((), dtype=np.int64)
    changes = (
        right - predicted[labels] - labeled[predictions],
        1 - 2 * labeled[labels],
        1 - 2 * predicted[predictions],
    )
    value = correlation(right.sum(), len(labels), (zero, zero, zero))
    return pseudo_values(float(value), correlation(right.sum() - right, len(labels) - 1, changes))


def pearson_pseudo_values(first: NDArray[np.float64], second: NDArray[np.float64]) -> PseudoValues:
    """Computes pseudo-values of Pearson's correlation.

    Args:
        first: shape (examples,), floating.
        second: shape (examples,), floating.

    Returns:
        shape (examples,), float64; `None` with fewer than 5 examples, or if one side does not vary.
    """
    n = len(first)
    if n < EXAMPLES_PER_CLASS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    x, y = first - first.mean(), second - second.mean()
    # Without example i, a sum of products of deviations is smaller by n / (n - 1) times its own product.
    shrink = n / (n - 1)
    xy, xx, yy = (x @ y - shrink * x * y), (x @ x - shrink * x * x), (y @ y - shrink * y * y)
    with np.errstate(divide="ignore", invalid="ignore"):
        without_one = xy / np.sqrt(xx * yy)
    return pseudo_values(float(x @ y / np.sqrt((x @ x) * (y @ y))), without_one)
