"""How far the outputs of two states of a model are apart."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS_AT_ONCE = 64  # distributions that are held together in float64


class Outputs(NamedTuple):
    """A model's outputs for a batch, without padding and without rows that do not count.

    Attributes:
        logits: (rows, choices), floating; minus infinity where there is no choice (padding).
        distribution: The meaning of a row of logits: probabilities that sum to 1, a probability for each choice, or a
            number, which has none.
        decisions: Integers, any shape, one for each answer that a user would get; empty if there are none.
        margins: The shape of `decisions`, floating: each decision stays as it is while no logit moves by more;
            `None` if they are unknown.
        scores: (examples,), floating, higher is better: each example's mean log-likelihood, or minus its squared error;
            `None` without labels.
        weights: (examples,), floating, such as the labels of each example; 0 for one without a label; `None` for equal
            weights.
    """

    logits: Tensor
    distribution: Literal["categorical", "bernoulli", "number"]
    decisions: Tensor
    margins: Tensor | None = None
    scores: Tensor | None = None
    weights: Tensor | None = None

    def on_host(self) -> "Outputs":
        """The same in host memory."""
        parts: list[Any] = [part.cpu() if isinstance(part, Tensor) else part for part in self]
        return Outputs(*parts)


def top_margins(logits: Tensor) -> Tensor:
    """By how much logits may move before another one is the largest.

    Args:
        logits: (rows, choices), floating; minus infinity where there is no choice.

    Returns:
        (rows,), float32: half of the distance between the two largest; infinity with a single choice.
    """
    if logits.shape[-1] == 1:
        return logits.new_full(logits.shape[:1], torch.inf, dtype=torch.float32)
    top = logits.float().topk(2, dim=-1).values
    return (top[:, 0] - top[:, 1]) / 2


def example_scores(outputs: list[Outputs]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores and weights of all examples.

    Args:
        outputs: One a batch.

    Returns:
        (examples,) each, float64; empty without labels.
    """
    scored = [batch for batch in outputs if batch.scores is not None]
    scores = [batch.scores.double() for batch in scored if batch.scores is not None]
    weights = [
        torch.ones(len(score)) if batch.weights is None else batch.weights
        for batch, score in zip(scored, scores, strict=True)
    ]
    if not scores:
        return np.empty(0), np.empty(0)
    return torch.cat(scores).numpy(), torch.cat(weights).double().numpy()


@dataclass(frozen=True)
class OutputDifference:
    """How far the logits, probabilities and decisions of one model are from those of another.

    Attributes:
        max_logit_difference: Largest absolute difference of two logits; NaN if a logit is.
        mean_logit_difference: The mean of all.
        rms_logit_difference: The root of the mean square of all.
        kl_divergence: Of the second model from the first, in nats, mean over all distributions; NaN without any.
        flipped_share: Share of decisions that differ, in [0, 1]; NaN without any.
        largest_logit: Of the first model, absolute.
        decisions: How many decisions were compared.
        firm_decisions: How many of these have a margin above the noise.
        firm_flips: How many of the firm ones differ.
        lost_share: The share of the adapter's effect on the logits that the second model lacks, by least squares: 0 if
            it has all, 1 if none, negative if it has too much; NaN without a base.
        effect_norm: The norm of the adapter's effect on all logits; NaN without a base.
    """

    max_logit_difference: float
    mean_logit_difference: float
    rms_logit_difference: float
    kl_divergence: float
    flipped_share: float
    largest_logit: float
    decisions: int
    firm_decisions: int = 0
    firm_flips: int = 0
    lost_share: float = math.nan
    effect_norm: float = math.nan


class OutputComparison:
    """Adds up the differences of batches; sums and maxima of several processes can be reduced.

    Args:
        noise: How far rounding may move a logit; decisions with a larger margin are firm.

    Attributes:
        sums: (11,), float64: absolute differences, their number, divergences, their number, flips, decisions, squared
            differences, firm flips, firm decisions, and of the first model's distance from its base the product with
            the difference and the square.
        maxima: (2,), float64: absolute difference, absolute logit.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.sums = torch.zeros(11, dtype=torch.float64)
        self.maxima = torch.zeros(2, dtype=torch.float64)

    def update(self, first: Outputs, second: Outputs, base: Outputs | None = None) -> None:
        """Adds a batch.

        Args:
            first: The outputs of one model.
            second: The other model's, for the same batch.
            base: Those of the first model without its adapter.
        """
        bases = [None] * len(first.logits) if base is None else _pieces(base.logits)
        for left, right, without in zip(_pieces(first.logits), _pieces(second.logits), bases, strict=False):
            self._add_logits(left, right, without)
            divergence = kl_divergence(left, right, first.distribution)
            self.sums[2:4] += torch.tensor([float(divergence.sum()), len(divergence)], dtype=torch.float64)
        flips = first.decisions != second.decisions
        self.sums[4:6] += torch.tensor([int(flips.sum()), flips.numel()], dtype=torch.float64)
        if first.margins is not None:
            firm = first.margins.double() > self.noise
            self.sums[7:9] += torch.tensor([int((flips & firm).sum()), int(firm.sum())], dtype=torch.float64)

    def _add_logits(self, left: Tensor, right: Tensor, without: Tensor | None) -> None:
        real = left != -torch.inf
        difference = (right - left)[real]
        if not len(difference):
            return
        largest = torch.stack([difference.abs().max(), left[real].abs().max()])
        self.maxima = torch.maximum(self.maxima, largest)
        self.sums[0:2] += torch.tensor([float(difference.abs().sum()), len(difference)], dtype=torch.float64)
        self.sums[6] += difference.square().sum()
        if without is not None:
            effect = (left - without)[real]
            self.sums[9:11] += torch.stack([(difference * effect).sum(), effect.square().sum()])

    def result(self) -> OutputDifference:
        """The difference over all batches."""
        sums = self.sums
        means = (sums[:6:2] / sums[1:6:2]).tolist()
        return OutputDifference(
            max_logit_difference=float(self.maxima[0]),
            mean_logit_difference=means[0],
            rms_logit_difference=float((sums[6] / sums[1]).sqrt()),
            kl_divergence=means[1],
            flipped_share=means[2],
            largest_logit=float(self.maxima[1]),
            decisions=int(sums[5]),
            firm_decisions=int(sums[8]),
            firm_flips=int(sums[7]),
            lost_share=float(-sums[9] / sums[10]) if sums[10] else math.nan,
            effect_norm=float(sums[10].sqrt()) if sums[10] else math.nan,
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
