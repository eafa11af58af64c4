"""The metrics of a split of an intent data set; its data modules share `datamodules.intents`."""

from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    BinarySpecificityAtSensitivity,
    MulticlassConfusionMatrix,
)

from lora_lightning.metrics.all_rows import AllRowsMetric
from lora_lightning.metrics.classification import ClassificationMetrics
from lora_lightning.metrics.decision_threshold import ThresholdMetrics
from lora_lightning.metrics.label_space import OUT_OF_SCOPE_TARGET, LabelSpace
from lora_lightning.metrics.out_of_scope import (
    ABOVE_EVERY_SCORE,
    best_threshold,
    in_scope_prediction,
    out_of_scope_score,
)

DETECTION = {
    "out_of_scope_precision": BinaryPrecision,
    "out_of_scope_recall": BinaryRecall,
    "out_of_scope_f1": BinaryF1Score,
}


class IntentMetrics(ClassificationMetrics):
    """The usual metrics of single labels, out-of-scope detection and accuracy by domain, over one split.

    Targets are class indices. A query out of scope has the index of that class, or -1 where there is no such class.
    Every value but the loss is a fraction in [0, 1]. `accuracy` counts out-of-scope queries too where they have a
    class.

    Args:
        space: The data set's labels.
    """

    def __init__(self, space: LabelSpace) -> None:
        super().__init__(space)
        self.out_of_scope_index = space.out_of_scope_index
        self.has_out_of_scope = space.has_out_of_scope
        self.domains = space.domains
        if space.has_out_of_scope:
            self.queries = AllRowsMetric(_queries, QUERY_DTYPES)

    def update(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (batch, classes), any floating dtype.
            target: (batch,), int64.
            loss: Scalar, the mean over the batch's rows that have a class; NaN where there are none.
        """
        logits = logits.detach().float()
        labeled = target != OUT_OF_SCOPE_TARGET
        if labeled.any():
            super().update(logits[labeled], target[labeled], loss)
        else:
            self.rows.update(0)
        if self.has_out_of_scope:
            self._update_out_of_scope(logits, target)

    def _update_out_of_scope(self, logits: Tensor, target: Tensor) -> None:
        index = self.out_of_scope_index
        prediction = logits.argmax(dim=-1)
        outside = target == (OUT_OF_SCOPE_TARGET if index is None else index)
        called = torch.zeros_like(outside) if index is None else prediction == index
        in_scope_correct = in_scope_prediction(logits, index) == target
        self.queries.update(out_of_scope_score(logits, index), outside, prediction == target, in_scope_correct, called)

    def choose_threshold(self) -> float:
        """Chooses the out-of-scope threshold on this split's rows; collective under several processes.

        Returns:
            The threshold, finite; `ABOVE_EVERY_SCORE` if the data set has no out-of-scope queries.
        """
        if not self.has_out_of_scope:
            return ABOVE_EVERY_SCORE
        queries = cast("Queries", self.queries.compute())
        return best_threshold(queries.score, queries.outside, queries.in_scope_correct)

    def compute(self, threshold: float = float("inf")) -> dict[str, Tensor]:
        """Everything, by name.

        Args:
            threshold: Queries whose out-of-scope score is at least this are called out of scope; chosen on validation.
                Infinity calls no query out of scope.

        Returns:
            Scalars by metric name, without the split's prefix. Values that the rows leave undefined are left out: of
            labels if no row has one, of domains without rows, of detection if all rows are of one kind.
        """
        values = super().compute()
        # From the confusion of all processes: one process alone may not have seen every domain.
        counts = cast("MulticlassConfusionMatrix", self.confusion).compute()
        for name, labels in self.domains.items():
            if rows := int(counts[labels].sum()):
                values[f"domain_accuracy/{name}"] = counts.diagonal()[labels].sum() / rows
        if self.has_out_of_scope:
            values |= self._compute_out_of_scope(cast("Queries", self.queries.compute()), threshold)
        return values

    def names(self) -> list[str]:
        """Names that `compute` may give a value, with any rows."""
        names = [*super().names(), *(f"domain_accuracy/{name}" for name in self.domains)]
        if not self.has_out_of_scope:
            return names
        names += [
            "in_scope_accuracy",
            "in_scope_accuracy_at_threshold",
            *(f"{name}_at_threshold" for name in DETECTION),
        ]
        names += [] if self.out_of_scope_index is None else DETECTION
        return [*names, "out_of_scope_auroc", "out_of_scope_fpr_at_95_tpr"]

    def _compute_out_of_scope(self, queries: "Queries", threshold: float) -> dict[str, Tensor]:
        score, truth = queries.score, queries.outside.long()
        inside = ~queries.outside
        if not inside.any():
            return {}
        values = {"in_scope_accuracy": queries.correct[inside].double().mean()}
        if inside.all():
            return values  # detection means nothing with one kind of row only
        above = score >= threshold
        values |= {f"{name}_at_threshold": value for name, value in _detection(above, truth).items()}
        values["in_scope_accuracy_at_threshold"] = (queries.in_scope_correct & ~above)[inside].double().mean()
        if self.out_of_scope_index is not None:
            values |= _detection(queries.called, truth)
        values["out_of_scope_auroc"] = BinaryAUROC()(score, truth)
        specificity, _ = BinarySpecificityAtSensitivity(min_sensitivity=0.95)(score, truth)
        values["out_of_scope_fpr_at_95_tpr"] = 1 - specificity
        return values


class Queries(NamedTuple):
    """What a model says of each query; every tensor has shape (rows,).

    Attributes:
        score: float32, the out-of-scope score.
        outside: bool, whether the query is out of scope.
        correct: bool, whether the most probable class is right.
        in_scope_correct: bool, whether the most probable class other than out of scope is right.
        called: bool, whether the most probable class is out of scope.
    """

    score: Tensor
    outside: Tensor
    correct: Tensor
    in_scope_correct: Tensor
    called: Tensor


QUERY_DTYPES = dict.fromkeys(Queries._fields, torch.int64) | {"score": torch.float32}


def _queries(score: NDArray[np.float64], *columns: NDArray[np.int64]) -> Queries:
    # The threshold lies between float32 neighbours, so the scores must be float32 again.
    return Queries(torch.from_numpy(score).float(), *(torch.from_numpy(column).bool() for column in columns))


def _detection(called: Tensor, truth: Tensor) -> dict[str, Tensor]:
    return {name: metric()(called.long(), truth) for name, metric in DETECTION.items()}


def classification_metrics(space: LabelSpace, *, has_threshold: bool = False) -> ClassificationMetrics:
    """The metrics that fit a data set's labels.

    Args:
        space: The labels.
        has_threshold: Whether validation chooses a threshold for decisions.

    Returns:
        Metrics for one split.

    Raises:
        ConfigurationError: If `space.metrics` names one that does not exist for such labels, or these have no such
            threshold.
    """
    if has_threshold:
        return ThresholdMetrics(space)
    return IntentMetrics(space) if space.has_out_of_scope or space.domains else ClassificationMetrics(space)
