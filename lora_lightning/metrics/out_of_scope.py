"""Scores and thresholds for queries that belong to no known intent."""

import torch
from torch import Tensor

ABOVE_EVERY_SCORE = 2.0  # scores are at most 1; unlike infinity, JSON has it


def out_of_scope_score(logits: Tensor, out_of_scope_index: int | None) -> Tensor:
    """How little a query looks like any known intent: 1 - the largest softmax probability of an in-scope intent.

    Without an out-of-scope class this is the maximum softmax probability of Hendrycks & Gimpel 2017
    (arXiv 1610.02136). With one, its probability takes part in the softmax; that ranks queries better than its
    probability alone, because the class is learnt from few queries and misses what they do not cover.

    Args:
        logits: (batch, classes), any floating dtype.
        out_of_scope_index: Index of the out-of-scope class, or `None` where there is none.

    Returns:
        (batch,), float32, in [0, 1]; higher means further out of scope.
    """
    probabilities = logits.float().softmax(dim=-1)
    if out_of_scope_index is not None:
        probabilities[:, out_of_scope_index] = 0
    return 1 - probabilities.amax(dim=-1)


def in_scope_prediction(logits: Tensor, out_of_scope_index: int | None) -> Tensor:
    """The most probable intent, leaving the out-of-scope class aside.

    Args:
        logits: (batch, classes), any floating dtype.
        out_of_scope_index: Index of the out-of-scope class, or `None`.

    Returns:
        (batch,), int64 class indices.
    """
    if out_of_scope_index is None:
        return logits.argmax(dim=-1)
    kept = logits.clone()
    kept[:, out_of_scope_index] = float("-inf")
    return kept.argmax(dim=-1)


def best_threshold(scores: Tensor, is_out_of_scope: Tensor, in_scope_correct: Tensor) -> float:
    """The score from which a query is called out of scope, chosen for accuracy over all queries.

    This is the rule of Larson et al. 2019 (oos-threshold): an in-scope query counts when it scores below the
    threshold and its intent is right, an out-of-scope query when it scores at or above it. Choose on validation
    data and only apply to test data.

    Args:
        scores: (n,), floating, higher means further out of scope.
        is_out_of_scope: (n,), bool.
        in_scope_correct: (n,), bool; whether the best in-scope intent is right (ignored for out-of-scope rows).

    Returns:
        The threshold, finite: halfway between two observed scores; the lowest score if calling every query out of
        scope is best; `ABOVE_EVERY_SCORE` if calling none is. Of equally good thresholds the highest, which leaves most
        in-scope queries alone.
    """
    if not len(scores):
        return ABOVE_EVERY_SCORE
    order = torch.argsort(scores, descending=True, stable=True)
    sorted_scores = scores[order]
    # Moving the threshold below a row wins it when it is out of scope and loses it when its intent was right.
    gain = is_out_of_scope[order].long() - (in_scope_correct & ~is_out_of_scope)[order].long()
    total = torch.cumsum(gain, dim=0)
    total = total.masked_fill(~can_cut_after(sorted_scores), torch.iinfo(torch.int64).min)
    best = int(total.argmax())
    return threshold_after(sorted_scores, best) if total[best] > 0 else ABOVE_EVERY_SCORE


def can_cut_after(sorted_scores: Tensor) -> Tensor:
    """Whether a threshold can be between each score and the next one, or below the last.

    Args:
        sorted_scores: (n,), floating, descending.

    Returns:
        (n,), bool; a cut between equal scores is none.
    """
    distinct = torch.ones_like(sorted_scores, dtype=torch.bool)
    distinct[:-1] = sorted_scores[:-1] != sorted_scores[1:]
    return distinct


def threshold_after(sorted_scores: Tensor, last: int) -> float:
    """The threshold that exactly the first scores reach.

    Args:
        sorted_scores: (n,), floating, descending.
        last: Place of the last of them; the next one is lower.

    Returns:
        Halfway between the two scores; the lowest score if all of them reach it.
    """
    below = sorted_scores[last + 1] if last + 1 < len(sorted_scores) else sorted_scores[last]
    halfway = below + (sorted_scores[last] - below) / 2
    # Between neighbouring floats there is nothing halfway, and rounding down would let the lower score in.
    return float(halfway if halfway > below else sorted_scores[last])
