"""Metrics of one split, by name: single-label, multi-label and regression data, from torchmetrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelStatScores,
)

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.metrics.all_rows import AllRowsMetric, WeightedMean
from lora_lightning.metrics.calibration import CalibrationBins, calibration_bins, expected_calibration_error
from lora_lightning.metrics.label_space import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpace
from lora_lightning.metrics.matthews import MatthewsCorrelation
from lora_lightning.metrics.regression import (
    mean_absolute_error,
    mean_squared_error,
    pearson_correlation,
    spearman_correlation,
)


class CalibrationError(AllRowsMetric):
    """Expected calibration error of the most probable class, in 15 bins."""

    def __init__(self) -> None:
        super().__init__(expected_calibration_error, {"confidence": torch.float32, "correct": torch.float32})

    def update(self, scores: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Adds rows.

        Args:
            scores: (rows, classes), floating, probabilities.
            target: (rows,), int64.
        """
        confidence, prediction = scores.max(dim=-1)
        super().update(confidence, prediction == target)


def _of_numbers(value: Callable[..., float]) -> AllRowsMetric:
    return AllRowsMetric(value, {"prediction": torch.float32, "target": torch.float32})


@dataclass(frozen=True)
class NamedMetric:
    """How to make a metric.

    Attributes:
        build: Takes the number of labels.
        on_scores: Whether it reads probabilities; otherwise decisions.
        binary: Whether it is about the second of two classes, and needs exactly two.
        usual: Whether it is reported without being asked for; with two classes all are.
    """

    build: Callable[[int], Metric]
    on_scores: bool = False
    binary: bool = False
    usual: bool = True


METRICS: dict[str, dict[str, NamedMetric]] = {
    SINGLE_LABEL: {
        "accuracy": NamedMetric(lambda labels: MulticlassAccuracy(labels, average="micro")),
        "macro_f1": NamedMetric(lambda labels: MulticlassF1Score(labels, average="macro")),
        "weighted_f1": NamedMetric(lambda labels: MulticlassF1Score(labels, average="weighted")),
        "calibration_error": NamedMetric(lambda _: CalibrationError(), on_scores=True),
        "matthews_correlation": NamedMetric(MatthewsCorrelation, usual=False),
        "f1": NamedMetric(lambda _: BinaryF1Score(), binary=True),
        "precision": NamedMetric(lambda _: BinaryPrecision(), binary=True),
        "recall": NamedMetric(lambda _: BinaryRecall(), binary=True),
    },
    MULTI_LABEL: {
        "micro_f1": NamedMetric(lambda labels: MultilabelF1Score(labels, average="micro")),
        "macro_f1": NamedMetric(lambda labels: MultilabelF1Score(labels, average="macro")),
        "exact_match": NamedMetric(MultilabelExactMatch),
        "mean_average_precision": NamedMetric(
            lambda labels: MultilabelAveragePrecision(labels, average="macro"), on_scores=True
        ),
    },
    REGRESSION: {
        "pearson": NamedMetric(lambda _: _of_numbers(pearson_correlation)),
        "spearman": NamedMetric(lambda _: _of_numbers(spearman_correlation)),
        "mean_squared_error": NamedMetric(lambda _: _of_numbers(mean_squared_error)),
        "mean_absolute_error": NamedMetric(lambda _: _of_numbers(mean_absolute_error)),
    },
}
NUMBER_OF_BINARY_LABELS = 2


class ClassificationMetrics(nn.Module):
    """The loss and the named metrics over one split; every row counts once, over all processes.

    Args:
        space: The data set's labels; its `metrics` says which, and without it the usual ones are reported.

    Raises:
        ConfigurationError: If a metric does not exist for this kind of labels.
    """

    def __init__(self, space: LabelSpace) -> None:
        super().__init__()
        num_labels = len(space.names)
        self.problem_type = space.problem_type
        self.rows = SumMetric()
        self.loss = WeightedMean()
        self.chosen = chosen_metrics(space)
        self.metrics = nn.ModuleDict({name: metric.build(num_labels) for name, metric in self.chosen.items()})
        self.confusion = MulticlassConfusionMatrix(num_labels) if self.problem_type == SINGLE_LABEL else None
        rows = {"confidence": torch.float32, "correct": torch.float32}
        self.confidences = AllRowsMetric(calibration_bins, rows) if self.problem_type == SINGLE_LABEL else None
        self.by_label = MultilabelStatScores(num_labels, average=None) if self.problem_type == MULTI_LABEL else None

    def update(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (batch, labels), any floating dtype.
            target: (batch,) int64 class indices, (batch, labels) of 0 and 1, or (batch,) floating numbers.
            loss: Scalar, the mean over the batch.
        """
        scores, decisions = scores_and_decisions(logits, self.problem_type)
        if self.problem_type == MULTI_LABEL:
            target = target.long()
        self.rows.update(len(target))
        self.loss.update(loss, weight=len(target))
        for name, metric in self.chosen.items():
            self.metrics[name].update(scores if metric.on_scores else decisions, target)  # type: ignore[operator]
        if self.confusion is not None and self.confidences is not None:
            self.confusion.update(decisions, target)
            self.confidences.update(scores.amax(dim=-1), decisions == target)
        if self.by_label is not None:
            self.by_label.update(decisions, target)

    def compute(self) -> dict[str, Tensor]:
        """Everything, by name; collective under several processes.

        Returns:
            Scalars by metric name, without the split's prefix; empty if there was no row.
        """
        if not self.rows.compute():
            return {}
        return {"loss": self.loss.compute()} | {name: metric.compute() for name, metric in self.metrics.items()}  # type: ignore[operator]

    def label_counts(self) -> NDArray[np.int64] | None:
        """How often each label is right, predicted and there; collective under several processes.

        Returns:
            (labels, 3), int64, as `label_scores` takes them, of the rows that have a class; `None` for regression.
        """
        if self.confusion is not None:
            matrix = self.confusion.compute().cpu().numpy()  # rows are truth
            return np.stack([matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)], axis=1)
        if self.by_label is not None:
            right, wrongly, _, _, true = self.by_label.compute().cpu().numpy().T
            return np.stack([right, right + wrongly, true], axis=1)
        return None

    def calibration(self) -> CalibrationBins | None:
        """Confidence and accuracy of the rows that have a class; `None` unless a text has a single label."""
        return None if self.confidences is None else cast("CalibrationBins", self.confidences.compute())

    def names(self) -> list[str]:
        """Names that `compute` may give a value, with any rows."""
        return ["loss", *self.chosen]

    def reset(self) -> None:
        """Forgets every batch."""
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()


def chosen_metrics(space: LabelSpace) -> dict[str, NamedMetric]:
    """Which metrics a data set reports.

    Args:
        space: Its labels.

    Returns:
        Metrics by name.

    Raises:
        ConfigurationError: If a name does not exist for this kind of labels, or a single label is all there is.
    """
    if space.problem_type == SINGLE_LABEL and len(space.names) < NUMBER_OF_BINARY_LABELS:
        msg = (
            f"the data has only the label {', '.join(map(repr, space.names))}, but classification needs at least 2; "
            "add rows with other labels."
        )
        raise ConfigurationError(msg)
    binary = len(space.names) == NUMBER_OF_BINARY_LABELS
    known = {name: metric for name, metric in METRICS[space.problem_type].items() if binary or not metric.binary}
    if space.metrics is None:
        return {name: metric for name, metric in known.items() if metric.usual or binary}
    for name in space.metrics:
        if name not in known:
            kind = space.problem_type.replace("_", " ")
            msg = f"there is no metric {name!r} for {kind} with {len(space.names)} labels; {suggest_names(name, known)}"
            raise ConfigurationError(msg)
    return {name: known[name] for name in space.metrics}


def scores_and_decisions(logits: Tensor, problem_type: str, threshold: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a model says, as probabilities and as answers.

    Args:
        logits: (batch, labels), any floating dtype.
        problem_type: Of the label space.
        threshold: Scalar: from which probability the second of two classes, or one of several labels, is the answer;
            `None` for the most probable class, and for one half.

    Returns:
        Probabilities, (batch, labels) float32, and the class, (batch,) int64; or for several labels 1 where the
        label applies, (batch, labels) int64; for a regression twice the number, (batch,) float32.
    """
    logits = logits.detach().float()
    if problem_type == REGRESSION:
        return logits.squeeze(-1), logits.squeeze(-1)
    if problem_type == MULTI_LABEL:
        scores = logits.sigmoid()
        return scores, (logits >= 0 if threshold is None else scores >= threshold).long()
    scores = logits.softmax(dim=-1)
    return scores, torch.argmax(logits, dim=-1) if threshold is None else (scores[:, 1] >= threshold).long()
