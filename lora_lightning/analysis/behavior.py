"""How two models' predictions for the same rows differ, in the measures of llama.cpp's `--kl-divergence`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_lightning.analysis.outputs import kl_divergence

UNLABELED = -100


@dataclass(frozen=True)
class PredictionChanges:
    """What differs between two models' predictions, row by row; a row is a text of a classifier, or a token.

    Attributes:
        divergences: (rows,), float64, nats: the Kullback-Leibler divergence of the second model from the first.
        probability_changes: (rows,), float64: the second model's probability of the label minus the first's; NaN
            without a label.
        loss_changes: (rows,), float64, nats: the second model's cross entropy minus the first's; NaN without a label.
        same_top: (rows,), bool: whether both find the same choice most likely.
        examples: (rows,), int64: number of the example that the row belongs to.
    """

    divergences: NDArray[np.float64]
    probability_changes: NDArray[np.float64]
    loss_changes: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    examples: NDArray[np.int64]

    @staticmethod
    def joined(parts: Sequence["PredictionChanges"]) -> "PredictionChanges":
        """Puts the rows of several batches, at least one, one after the other."""
        return PredictionChanges(
            np.concatenate([part.divergences for part in parts]),
            np.concatenate([part.probability_changes for part in parts]),
            np.concatenate([part.loss_changes for part in parts]),
            np.concatenate([part.same_top for part in parts]),
            np.concatenate([part.examples for part in parts]),
        )


def compare_predictions(first: Tensor, second: Tensor, labels: Tensor, examples: Tensor) -> PredictionChanges:
    """Compares two models' predictions.

    Args:
        first: Logits of one model, (rows, choices), floating dtype; minus infinity where there is no choice.
        second: Those of the other model.
        labels: (rows,), int64: the choice that is right; -100 if that is unknown.
        examples: (rows,), int64: number of the example that each row belongs to.

    Returns:
        The differences, computed in float64.
    """
    p, q = (logits.cpu().double().log_softmax(dim=-1) for logits in (first, second))
    labels = labels.cpu()
    known = labels != UNLABELED
    places = labels.clamp(min=0)[:, None]
    own, other = (side.gather(1, places).squeeze(1) for side in (p, q))
    nothing = torch.full_like(own, torch.nan)
    return PredictionChanges(
        kl_divergence(p, q, "categorical").clamp(min=0).numpy(),
        torch.where(known, other.exp() - own.exp(), nothing).numpy(),
        torch.where(known, own - other, nothing).numpy(),
        (p.argmax(dim=-1) == q.argmax(dim=-1)).numpy(),
        examples.cpu().numpy().astype(np.int64),
    )


@dataclass(frozen=True)
class Decisions:
    """What a user gets from a model.

    Attributes:
        made: (decisions,), any dtype with equality: one for each text, for each label of a text, or for each question.
        are_right: (decisions,), bool.
    """

    made: NDArray[Any]
    are_right: NDArray[np.bool_]


@dataclass(frozen=True)
class Flips:
    """Decisions of two models on the same examples with labels.

    Attributes:
        examples: How many decisions there were.
        same: How many decisions are the same.
        lost: How many the first model has right and the second one wrong.
        gained: How many the first model has wrong and the second one right.
        other: How many are wrong, or right, in two ways.
    """

    examples: int
    same: int
    lost: int
    gained: int
    other: int

    @property
    def agreement(self) -> float:
        """Share of the examples with the same decision, in [0, 1]; NaN without examples."""
        return self.same / self.examples if self.examples else float("nan")


def count_flips(first: Decisions, second: Decisions) -> Flips:
    """Counts how the decisions of two models differ.

    Args:
        first: Those of one model.
        second: Those of the other one, in the same order.

    Returns:
        The counts.
    """
    differs = first.made != second.made
    lost, gained = (differs & (one.are_right & ~other.are_right) for one, other in ((first, second), (second, first)))
    return Flips(
        examples=len(first.made),
        same=int((~differs).sum()),
        lost=int(lost.sum()),
        gained=int(gained.sum()),
        other=int((differs & ~lost & ~gained).sum()),
    )


def leading_match(first: Sequence[int], second: Sequence[int]) -> float:
    """The share of a greedy completion that another model repeats before it first deviates.

    Args:
        first: Tokens of one model's completion.
        second: Tokens of the other's, of the same prompt.

    Returns:
        Equal leading tokens as a share of the longer completion, in [0, 1]; 1 if both are empty.
    """
    longest = max(len(first), len(second))
    pairs = zip(first, second, strict=False)
    same = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
    return same / longest if longest else 1.0
