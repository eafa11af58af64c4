"""The loss, the predictions and their readable form for each kind of labels."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from lora_lightning.analysis.outputs import Outputs, top_margins
from lora_lightning.metrics import (
    MULTI_LABEL,
    OUT_OF_SCOPE_TARGET,
    REGRESSION,
    LabelSpace,
    in_scope_prediction,
    out_of_scope_score,
    scores_and_decisions,
)
from lora_lightning.tasks.class_weights import cell_weights

DIGITS = 6  # of scores in files


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """The loss of a batch: cross entropy, binary cross entropy of each label, or the squared error.

    Args:
        logits: (batch, labels), any floating dtype.
        labels: (batch,) int64 class indices, -1 for rows without a class; (batch, labels) float32 of 0 and 1; or
            (batch,) float32 numbers.
        problem_type: Of the label space.
        label_smoothing: Share of the target's mass spread over all classes; for single labels.
        class_weights: From `class_weights.class_weights`, on the device; `None` if all labels weigh alike.

    Returns:
        A float32 scalar, the mean over the batch (and over its labels if a text has several), weighted if there are
        weights.
    """
    logits = logits.float()
    reduction = "mean" if class_weights is None else "none"
    if problem_type == REGRESSION:
        return functional.mse_loss(logits.squeeze(-1), labels)
    if problem_type == MULTI_LABEL:
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction=reduction)
    else:
        loss = functional.cross_entropy(
            logits, labels, ignore_index=OUT_OF_SCOPE_TARGET, label_smoothing=label_smoothing, reduction=reduction
        )
    if class_weights is None:
        return loss
    weights = cell_weights(labels, class_weights)
    return (loss * weights).sum() / weights.sum()


def constant_logits(labels: Tensor, count: int, problem_type: str) -> Tensor:
    """The logits that, the same for every row, have the least loss.

    Args:
        labels: Of all rows, as in `classification_loss`.
        count: Number of labels.
        problem_type: Of the label space.

    Returns:
        (labels,), float32.
    """
    if problem_type == REGRESSION:
        return labels.float().mean()[None]
    if problem_type == MULTI_LABEL:
        return labels.float().mean(dim=0).logit(eps=1e-6)
    counts = torch.bincount(labels[labels != OUT_OF_SCOPE_TARGET], minlength=count)
    return (counts / counts.sum().clamp(min=1)).clamp(min=1e-6).log()


def predict_labels(logits: Tensor, space: LabelSpace, threshold: Tensor | None) -> dict[str, Tensor]:
    """The predictions for a batch.

    Args:
        logits: (batch, labels), any floating dtype.
        space: The labels.
        threshold: Scalar: of the out-of-scope score; otherwise as in `scores_and_decisions`, `None` for one half.

    Returns:
        Columns with a first axis of (batch,). For regression `prediction`; for several labels per text `scores`,
        (batch, labels), probabilities, and `applies`, of the same shape, 0 or 1; for a single label `label`, int64, and
        `score`, its softmax probability; for intents `intent`, the best in-scope class, `score` and
        `out_of_scope_score`, both in [0, 1], and `is_out_of_scope`, bool.
    """
    if space.has_out_of_scope:
        intent = in_scope_prediction(logits, space.out_of_scope_index)
        outside = out_of_scope_score(logits, space.out_of_scope_index)
        return {
            "intent": intent,
            "score": logits.float().softmax(dim=-1).gather(1, intent[:, None]).squeeze(1),
            "out_of_scope_score": outside,
            "is_out_of_scope": outside >= cast("Tensor", threshold),
        }
    scores, decisions = scores_and_decisions(logits, space.problem_type, threshold)
    if space.problem_type == REGRESSION:
        return {"prediction": scores}
    if space.problem_type == MULTI_LABEL:
        return {"scores": scores, "applies": decisions}
    return {"label": decisions, "score": scores.gather(1, decisions[:, None]).squeeze(1)}


def outputs_of_logits(logits: Tensor, space: LabelSpace, threshold: Tensor | None) -> Outputs:
    """Logits with their distribution and the decisions that follow from them.

    Args:
        logits: (batch, labels), any floating dtype.
        space: The labels.
        threshold: As in `predict_labels`.

    Returns:
        Decisions are classes, -1 for a query out of scope; 0 or 1 for each of several labels; none for regression.
    """
    if space.problem_type == REGRESSION:
        return Outputs(logits, "number", logits.new_empty(0, dtype=torch.int64))
    limit = 0 if threshold is None else threshold.to(logits.device).float().logit()
    if space.problem_type == MULTI_LABEL:
        decisions = scores_and_decisions(logits, MULTI_LABEL, threshold)[1]
        return Outputs(logits, "bernoulli", decisions, margins=(logits.float() - limit).abs())
    predicted = predict_labels(logits, space, threshold)
    if "intent" not in predicted:
        binary = threshold is not None  # both logits may move
        margins = (logits.float().diff(dim=-1).squeeze(-1) - limit).abs() / 2 if binary else top_margins(logits)
        return Outputs(logits, "categorical", predicted["label"], margins=margins)
    outside, score = predicted["is_out_of_scope"], predicted["out_of_scope_score"]
    # The log odds of a class move by at most twice what a logit does.
    from_threshold = (score.logit() - cast("Tensor", threshold).to(score).logit(eps=0.0)).abs() / 2
    intents = logits.clone()
    if space.out_of_scope_index is not None:
        intents[:, space.out_of_scope_index] = -torch.inf
    margins = torch.where(outside, from_threshold, torch.minimum(from_threshold, top_margins(intents)))
    return Outputs(logits, "categorical", predicted["intent"].masked_fill(outside, -1), margins=margins)


def row_scores(logits: Tensor, labels: Tensor, problem_type: str) -> tuple[Tensor, Tensor]:
    """How well each row is predicted.

    Args:
        logits: (batch, labels), any floating dtype.
        labels: As in `classification_loss`.
        problem_type: Of the label space.

    Returns:
        (batch,) float32, higher is better: the log-likelihood, the mean of those of several labels, or minus the
        squared error; and (batch,) float32, 0 for a row without a class, else 1.
    """
    logits = logits.float()
    if problem_type == REGRESSION:
        scores = -(logits.squeeze(-1) - labels).square()
    elif problem_type == MULTI_LABEL:
        scores = -functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)
    else:
        ignored = OUT_OF_SCOPE_TARGET
        scores = -functional.cross_entropy(logits, labels, ignore_index=ignored, reduction="none")
        return scores, (labels != ignored).float()
    return scores, torch.ones_like(scores)


def readable_prediction(prediction: Mapping[str, Any], space: LabelSpace) -> dict[str, Any]:
    """One row of `predict_labels` with the names of labels instead of their numbers.

    Args:
        prediction: Plain values by column.
        space: The labels.

    Returns:
        The row as it is written into a file.
    """
    if space.has_out_of_scope:
        return {
            "intent": space.names[prediction["intent"]],
            "score": round(prediction["score"], DIGITS),
            "out_of_scope_score": round(prediction["out_of_scope_score"], DIGITS),
            "decision": "out_of_scope" if prediction["is_out_of_scope"] else "in_scope",
        }
    if space.problem_type == REGRESSION:
        return {"prediction": round(prediction["prediction"], DIGITS)}
    if space.problem_type == MULTI_LABEL:
        scores = {name: round(score, DIGITS) for name, score in zip(space.names, prediction["scores"], strict=True)}
        labels = [name for name, applies in zip(space.names, prediction["applies"], strict=True) if applies]
        return {"labels": labels, "scores": scores}
    return {"label": space.names[prediction["label"]], "score": round(prediction["score"], DIGITS)}
