"""Metrics of one split, by name: single-label, multi-label and regression data, from torchmetrics."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, PearsonCorrCoef, SpearmanCorrCoef

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.metrics.label_space import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpace
from lora_lightning.metrics.matthews import MatthewsCorrelation

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv 1706.04599


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
        "calibration_error": NamedMetric(
            lambda labels: MulticlassCalibrationError(labels, n_bins=CALIBRATION_BINS, norm="l1"), on_scores=True
        ),
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
        "pearson": NamedMetric(lambda _: PearsonCorrCoef()),
        "spearman": NamedMetric(lambda _: SpearmanCorrCoef()),
        "mean_squared_error": NamedMetric(lambda _: MeanSquaredError()),
        "mean_absolute_error": NamedMetric(lambda _: MeanAbsoluteError()),
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
        self.loss = MeanMetric()
        self.chosen = chosen_metrics(space)
        self.metrics = nn.ModuleDict({name: metric.build(num_labels) for name, metric in self.chosen.items()})
        self.confusion = MulticlassConfusionMatrix(num_labels) if self.problem_type == SINGLE_LABEL else None

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
        self.loss.update(loss.detach(), weight=len(target))
        for name, metric in self.chosen.items():
            self.metrics[name].update(scores if metric.on_scores else decisions, target)  # type: ignore[operator]
        if self.confusion is not None:
            self.confusion.update(decisions, target)

    def compute(self) -> dict[str, Tensor]:
        """Everything, by name; collective under several processes.

        Returns:
            Scalars by metric name, without the split's prefix.
        """
        return {"loss": self.loss.compute()} | {name: metric.compute() for name, metric in self.metrics.items()}  # type: ignore[operator]

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
        ConfigurationError: If a name does not exist for this kind of labels.
    """
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


def scores_and_decisions(logits: Tensor, problem_type: str) -> tuple[Tensor, Tensor]:
    """What a model says, as probabilities and as answers.

    Args:
        logits: (batch, labels), any floating dtype.
        problem_type: Of the label space.

    Returns:
        Probabilities, (batch, labels) float32, and the best class, (batch,) int64; or for several labels 1 where the
        probability is at least a half, (batch, labels) int64; for a regression twice the number, (batch,) float32.
    """
    logits = logits.detach().float()
    if problem_type == REGRESSION:
        return logits.squeeze(-1), logits.squeeze(-1)
    if problem_type == MULTI_LABEL:
        return logits.sigmoid(), (logits >= 0).long()
    return logits.softmax(dim=-1), torch.argmax(logits, dim=-1)
