"""How far two states of a model are apart in what they say."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 64  # distributions that are held together in float64


class Outputs(NamedTuple):
    """What a model says about a batch, of which only what counts is there.

    Attributes:
        logits: (rows, choices), floating; minus infinity where there is no choice (padding).
        distribution: What a row of logits means: probabilities that sum to 1, a probability for each choice, or a
            number, which has none.
        decisions: Integers, any shape, one for each answer that a user would get; empty where there are none.
    """

    logits: Tensor
    distribution: Literal["categorical", "bernoulli", "number"]
    decisions: Tensor


@dataclass(frozen=True)
class OutputDifference:
    """How far the logits, probabilities and decisions of one model are from those of another.

    Attributes:
        max_logit_difference: Largest absolute difference of two logits; NaN if a logit is.
        mean_logit_difference: The mean of all.
        kl_divergence: Of the second model from the first, in nats, mean over all distributions; NaN without any.
        flipped_share: Share of decisions that differ, in [0, 1]; NaN without any.
        largest_logit: Of the first model, absolute.
        decisions: How many decisions were compared.
    """

    max_logit_difference: float
    mean_logit_difference: float
    kl_divergence: float
    flipped_share: float
    largest_logit: float
    decisions: int


class OutputComparison:
    """Adds up the differences of batches; sums and maxima of several processes can be reduced.

    Attributes:
        sums: (6,), float64: absolute differences, their number, divergences, their number, flips, decisions.
        maxima: (2,), float64: absolute difference, absolute logit.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64)
        self.maxima = torch.zeros(2, dtype=torch.float64)

    def update(self, first: Outputs, second: Outputs) -> None:
        """Adds a batch.

        Args:
            first: What one model says.
            second: What the other says, about the same batch.
        """
        for left, right in zip(_pieces(first.logits), _pieces(second.logits), strict=True):
            real = left != -torch.inf
            difference = (left - right)[real].abs()
            if len(difference):
                largest = torch.stack([difference.max(), left[real].abs().max()])
                self.maxima = torch.maximum(self.maxima, largest)
            divergence = kl_divergence(left, right, first.distribution)
            sums = [float(difference.sum()), len(difference), float(divergence.sum()), len(divergence), 0, 0]
            self.sums += torch.tensor(sums, dtype=torch.float64)
        self.sums[4] += int((first.decisions != second.decisions).sum())
        self.sums[5] += first.decisions.numel()

    def result(self) -> OutputDifference:
        """The difference over all batches."""
        means = (self.sums[::2] / self.sums[1::2]).tolist()
        return OutputDifference(
            max_logit_difference=float(self.maxima[0]),
            mean_logit_difference=means[0],
            kl_divergence=means[1],
            flipped_share=means[2],
            largest_logit=float(self.maxima[1]),
            decisions=int(self.sums[5]),
        )


def kl_divergence(first: Tensor, second: Tensor, distribution: str) -> Tensor:
    """Kullback-Leibler divergence, sum of p (log p - log q), of each distribution.

    Args:
        first: Logits of p, (rows, choices), floating; minus infinity where there is no choice.
        second: Logits of q, the same shape.
        distribution: As in `Outputs`.

    Returns:
        Nats: (rows,), or (rows * choices,) for `bernoulli`, (0,) for `number`; at least 0 up to rounding.
    """
    if distribution == "number":
        return first.new_empty(0)
    if distribution == "bernoulli":  # the softmax of (x, 0) is (sigmoid(x), 1 - sigmoid(x))
        first, second = (torch.stack([x.flatten(), torch.zeros_like(x.flatten())], dim=-1) for x in (first, second))
    p, q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return (p.exp() * (p - q)).masked_fill(first == -torch.inf, 0).sum(dim=-1)


def _pieces(logits: Tensor) -> list[Tensor]:
    return [rows.double() for rows in torch.split(logits.cpu(), ROWS_AT_ONCE)]  # not every accelerator has float64
