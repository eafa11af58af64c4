"""Every metric of one split of an intent data set."""

from typing import cast

import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    BinarySpecificityAtSensitivity,
    MulticlassConfusionMatrix,
)

from lora_lightning.metrics.classification import ClassificationMetrics
from lora_lightning.metrics.label_space import OUT_OF_SCOPE_TARGET, LabelSpace
from lora_lightning.metrics.out_of_scope import best_threshold, in_scope_prediction, out_of_scope_score

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
            self.in_scope_accuracy = MeanMetric()
            self.scores, self.truth, self.correct, self.called = (CatMetric() for _ in range(4))

    def update(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (batch, classes), any floating dtype.
            target: (batch,), int64.
            loss: Scalar, the mean over the batch's rows that have a class; NaN where there are none.
        """
        logits = logits.detach().float()
        labelled = target != OUT_OF_SCOPE_TARGET
        if labelled.any():
            super().update(logits[labelled], target[labelled], loss)
        if self.has_out_of_scope:
            self._update_out_of_scope(logits, target)

    def _update_out_of_scope(self, logits: Tensor, target: Tensor) -> None:
        index = self.out_of_scope_index
        prediction = logits.argmax(dim=-1)
        outside = target == (OUT_OF_SCOPE_TARGET if index is None else index)
        if (~outside).any():
            self.in_scope_accuracy.update((prediction == target)[~outside].float())
        self.scores.update(out_of_scope_score(logits, index))
        self.truth.update(outside.float())
        self.correct.update((in_scope_prediction(logits, index) == target).float())
        if index is not None:
            self.called.update((prediction == index).float())

    def choose_threshold(self) -> float:
        """Chooses the out-of-scope threshold on this split's rows; collective under several processes.

        Returns:
            The threshold, or infinity where the split has no out-of-scope row.
        """
        if not self.has_out_of_scope:
            return float("inf")
        return best_threshold(_values(self.scores), _values(self.truth).bool(), _values(self.correct).bool())

    def compute(self, threshold: float = float("inf")) -> dict[str, Tensor]:
        """Everything, by name.

        Args:
            threshold: Out-of-scope score from which a query is called out of scope, chosen on validation; infinity
                calls nothing so.

        Returns:
            Scalars by metric name, without the split's prefix.
        """
        values = super().compute()
        # From the confusion of all processes: one process alone may not have seen every domain.
        counts = cast("MulticlassConfusionMatrix", self.confusion).compute()
        for name, labels in self.domains.items():
            if rows := int(counts[labels].sum()):
                values[f"domain_accuracy/{name}"] = counts.diagonal()[labels].sum() / rows
        if self.has_out_of_scope:
            values["in_scope_accuracy"] = self.in_scope_accuracy.compute()
            values |= self._compute_out_of_scope(threshold)
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

    def _compute_out_of_scope(self, threshold: float) -> dict[str, Tensor]:
        scores, truth, correct = _values(self.scores), _values(self.truth).long(), _values(self.correct)
        if truth.sum() in (0, len(truth)):
            return {}  # detection means nothing with one kind of row only
        above = (scores >= threshold).long()
        values = {f"{name}_at_threshold": value for name, value in _detection(above, truth).items()}
        values["in_scope_accuracy_at_threshold"] = (correct * (1 - above))[truth == 0].mean()
        if self.out_of_scope_index is not None:
            values |= _detection(_values(self.called).long(), truth)
        values["out_of_scope_auroc"] = BinaryAUROC()(scores, truth)
        specificity, _ = BinarySpecificityAtSensitivity(min_sensitivity=0.95)(scores, truth)
        values["out_of_scope_fpr_at_95_tpr"] = 1 - specificity
        return values


def _values(metric: CatMetric) -> Tensor:
    """All collected values; a `CatMetric` that saw a single row gives a scalar."""
    return torch.as_tensor(metric.compute()).reshape(-1)


def _detection(called: Tensor, truth: Tensor) -> dict[str, Tensor]:
    return {name: metric()(called, truth) for name, metric in DETECTION.items()}
