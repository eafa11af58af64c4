"""From which probability a label applies: chosen for F1 on validation data, of two classes or several labels a text."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.all_rows import AllRowsMetric
from lora_lightning.metrics.classification import NUMBER_OF_BINARY_LABELS, ClassificationMetrics, scores_and_decisions
from lora_lightning.metrics.label_space import MULTI_LABEL, SINGLE_LABEL, LabelSpace
from lora_lightning.metrics.out_of_scope import can_cut_after, threshold_after

HALF = 0.5
AT_THRESHOLD = "_at_threshold"  # ends the names of metrics that follow a threshold


def best_f1_threshold(scores: Tensor, applies: Tensor) -> float:
    """The probability from which a label is said to apply, chosen for the F1 of all rows together.

    Args:
        scores: (n,), floating, probabilities.
        applies: (n,), 0 or 1, whether the label does apply.

    Returns:
        The threshold: halfway between two observed probabilities, or the lowest of them; one half if no label applies,
        or a probability is NaN. Of equally good thresholds the highest.
    """
    positives = int(applies.sum())
    if not positives or scores.isnan().any():
        return HALF
    order = torch.argsort(scores, descending=True, stable=True)
    hits = torch.cumsum(applies[order].long(), dim=0).double()
    f1 = 2 * hits / (torch.arange(1, len(hits) + 1) + positives)
    f1 = f1.masked_fill(~can_cut_after(scores[order]), -1.0)
    return threshold_after(scores[order], int(f1.argmax()))


class ThresholdMetrics(ClassificationMetrics):
    """The usual metrics, and those that read decisions once more, with a threshold in place of one half.

    Args:
        space: Two single labels, of which the second one has the threshold; or several labels a text, which share one.

    Raises:
        ConfigurationError: If the labels are of another kind, or what `ClassificationMetrics` raises.
    """

    def __init__(self, space: LabelSpace) -> None:
        check_labels_have_threshold(space)
        super().__init__(space)
        self.num_labels = len(space.names)
        self.scored = AllRowsMetric(_scored, {"score": torch.float32, "applies": torch.int64})

    def update(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (batch, labels), any floating dtype.
            target: (batch,) int64 class indices, or (batch, labels) of 0 and 1.
            loss: Scalar, the mean over the batch.
        """
        super().update(logits, target, loss)
        scores, _ = scores_and_decisions(logits, self.problem_type)
        self.scored.update(scores if self.problem_type == MULTI_LABEL else scores[:, 1], target)

    def choose_threshold(self) -> float:
        """Chooses the threshold on this split's rows; collective under several processes."""
        return best_f1_threshold(*cast("tuple[Tensor, Tensor]", self.scored.compute()))

    def compute(self, threshold: float = HALF) -> dict[str, Tensor]:
        """Everything, by name; collective under several processes.

        Args:
            threshold: Chosen on validation.

        Returns:
            Scalars by metric name, without the split's prefix; empty if there was no row.
        """
        values = super().compute()
        if not values:
            return {}
        scores, applies = cast("tuple[Tensor, Tensor]", self.scored.compute())
        decisions = (scores >= threshold).long()
        if self.problem_type == MULTI_LABEL:
            decisions, applies = decisions.view(-1, self.num_labels), applies.view(-1, self.num_labels)
        for name, metric in self.chosen.items():
            if not metric.on_scores:
                values[f"{name}{AT_THRESHOLD}"] = metric.build(self.num_labels)(decisions, applies)
        return values

    def names(self) -> list[str]:
        """Names that `compute` may give a value, with any rows."""
        names = super().names()
        return names + [f"{name}{AT_THRESHOLD}" for name, metric in self.chosen.items() if not metric.on_scores]


def check_labels_have_threshold(space: LabelSpace) -> None:
    """Refuses labels whose decisions do not come from one threshold.

    Args:
        space: The labels.

    Raises:
        ConfigurationError: If there are more than two single labels, or none, or they have a threshold of their own.
    """
    binary = space.problem_type == SINGLE_LABEL and len(space.names) == NUMBER_OF_BINARY_LABELS
    if space.has_out_of_scope or space.domains:
        why = "this data has intents, of which queries out of scope have a threshold of their own"
    elif binary or space.problem_type == MULTI_LABEL:
        return
    else:
        why = f"this data is {space.problem_type.replace('_', ' ')}"
        why += f" with {len(space.names)} labels" * (space.problem_type == SINGLE_LABEL)
    msg = f"model.decision_threshold is for two labels, or several labels a text, but {why}; set it to null."
    raise ConfigurationError(msg)


def _scored(scores: NDArray[np.float64], applies: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    # The threshold lies between float32 neighbours, so the scores must be float32 again.
    return torch.from_numpy(scores).float(), torch.from_numpy(applies)
