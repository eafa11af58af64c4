"""The loss, the predictions and their readable form for each kind of labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.metrics import (
    MULTI_LABEL,
    OUT_OF_SCOPE_TARGET,
    REGRESSION,
    LabelSpace,
    in_scope_prediction,
    out_of_scope_score,
    scores_and_decisions,
)

DIGITS = 6  # of scores in files


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
    """The loss of a batch: cross entropy, binary cross entropy of each label, or the squared error.

    Args:
        logits: (batch, labels), any floating dtype.
        labels: (batch,) int64 class indices, -1 for rows without a class; (batch, labels) float32 of 0 and 1; or
            (batch,) float32 numbers.
        problem_type: Of the label space.
        label_smoothing: Share of the target's mass spread over all classes; for single labels.

    Returns:
        A float32 scalar, the mean over the batch (and over its labels if a text has several).
    """
    logits = logits.float()
    if problem_type == REGRESSION:
        return functional.mse_loss(logits.squeeze(-1), labels)
    if problem_type == MULTI_LABEL:
        return functional.binary_cross_entropy_with_logits(logits, labels)
    return functional.cross_entropy(logits, labels, ignore_index=OUT_OF_SCOPE_TARGET, label_smoothing=label_smoothing)


def predict_labels(logits: Tensor, space: LabelSpace, out_of_scope_threshold: Tensor) -> dict[str, Tensor]:
    """The predictions for a batch.

    Args:
        logits: (batch, labels), any floating dtype.
        space: The labels.
        out_of_scope_threshold: Scalar; for data with out-of-scope queries.

    Returns:
        Columns with a first axis of (batch,). For regression `prediction`; for several labels per text `scores`,
        (batch, labels), probabilities; for a single label `label`, int64, and `score`, its softmax probability; for
        intents `intent`, the best in-scope class, `score` and `out_of_scope_score`, both in [0, 1], and
        `is_out_of_scope`, bool.
    """
    if space.has_out_of_scope:
        intent = in_scope_prediction(logits, space.out_of_scope_index)
        outside = out_of_scope_score(logits, space.out_of_scope_index)
        return {
            "intent": intent,
            "score": logits.float().softmax(dim=-1).gather(1, intent[:, None]).squeeze(1),
            "out_of_scope_score": outside,
            "is_out_of_scope": outside >= out_of_scope_threshold,
        }
    scores, decisions = scores_and_decisions(logits, space.problem_type)
    if space.problem_type == REGRESSION:
        return {"prediction": scores}
    if space.problem_type == MULTI_LABEL:
        return {"scores": scores}
    return {"label": decisions, "score": scores.gather(1, decisions[:, None]).squeeze(1)}


def outputs_of_logits(logits: Tensor, space: LabelSpace, out_of_scope_threshold: Tensor) -> Outputs:
    """Logits with their distribution and the decisions that follow from them.

    Args:
        logits: (batch, labels), any floating dtype.
        space: The labels.
        out_of_scope_threshold: Scalar; for data with out-of-scope queries.

    Returns:
        Decisions are classes, -1 for a query out of scope; 0 or 1 for each of several labels; none for regression.
    """
    if space.problem_type == REGRESSION:
        return Outputs(logits, "number", logits.new_empty(0, dtype=torch.int64))
    if space.problem_type == MULTI_LABEL:
        return Outputs(logits, "bernoulli", scores_and_decisions(logits, MULTI_LABEL)[1])
    predicted = predict_labels(logits, space, out_of_scope_threshold)
    if "intent" in predicted:
        decisions = predicted["intent"].masked_fill(predicted["is_out_of_scope"], -1)
    else:
        decisions = predicted["label"]
    return Outputs(logits, "categorical", decisions)


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
        return {"labels": [name for name, score in scores.items() if score >= 0.5], "scores": scores}  # noqa: PLR2004
    return {"label": space.names[prediction["label"]], "score": round(prediction["score"], DIGITS)}
