"""How much one changed decision can move a metric of decisions: what the score test needs to know of rare changes."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def largest_f1_loss(labels: NDArray[np.bool_], predictions: NDArray[np.bool_]) -> float:
    """The largest loss of an F1 score by one changed decision, times the number of examples.

    Args:
        labels: shape (examples,), bool, at least one is positive.
        predictions: shape (examples,), bool.

    Returns:
        At least 0; that of a hit that gets lost.
    """
    hits, size = int((labels & predictions).sum()), int(labels.sum() + predictions.sum())
    return len(labels) * float(_lost_hit(np.array([hits]), np.array([size]))[0])


def largest_macro_f1_loss(labels: Labels, predictions: Labels) -> float:
    """The same for the unweighted mean of the F1 scores of all classes.

    Args:
        labels: shape (examples,), integers from 0, not empty.
        predictions: shape (examples,), integers from 0.

    Returns:
        At least 0; that of a hit of one class that becomes a false alarm of another.
    """
    count = int(max(labels.max(), predictions.max())) + 1
    labeled, predicted = np.bincount(labels, minlength=count), np.bincount(predictions, minlength=count)
    hits, sizes = np.bincount(labels[labels == predictions], minlength=count), labeled + predicted
    lost = _lost_hit(hits, sizes)
    false_alarm = 2 * hits / np.maximum(sizes, 1) - 2 * hits / (sizes + 1)
    pairs = lost[:, None] + false_alarm[None, :]
    np.fill_diagonal(pairs, 0.0)
    largest = float(pairs[hits > 0].max(initial=0.0))
    return len(labels) * largest / int((sizes > 0).sum())


def _lost_hit(hits: Labels, sizes: Labels) -> NDArray[np.float64]:
    """By how much F1 falls if a hit becomes a miss; 0 without hits."""
    fall = 2 * hits / np.maximum(sizes, 1) - 2 * (hits - 1) / np.maximum(sizes - 1, 1)
    return np.where(hits > 0, fall, 0.0)


def largest_matthews_loss(labels: Labels, predictions: Labels) -> float:
    """The same for the Matthews correlation, for any number of classes.

    Args:
        labels: shape (examples,), integers from 0, at least two different ones.
        predictions: shape (examples,), integers from 0, at least two different ones.

    Returns:
        At least 0; that of a hit of one class that becomes a prediction of another.
    """
    count, total = int(max(labels.max(), predictions.max())) + 1, len(labels)
    labeled, predicted = np.bincount(labels, minlength=count), np.bincount(predictions, minlength=count)
    hits = np.bincount(labels[labels == predictions], minlength=count)
    from_, to = np.indices((count, count))
    both = labeled @ predicted + labeled[to] - labeled[from_]
    of_predictions = predicted @ predicted + 2 * (predicted[to] - predicted[from_] + 1)
    spread = float(total**2 - labeled @ labeled)
    value = (hits.sum() * total - labeled @ predicted) / np.sqrt((total**2 - float(predicted @ predicted)) * spread)
    changed = ((hits.sum() - 1) * total - both) / np.sqrt(np.maximum(total**2 - of_predictions, 1) * spread)
    possible = (hits[from_] > 0) & (from_ != to)
    return total * float((value - changed)[possible].max(initial=0.0))
