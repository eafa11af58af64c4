"""How much of what an adapter gains is left after it was merged, quantized or truncated."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_lightning.statistics.jackknife import CONFIDENCE, Interval, jackknife_interval, weighted_means


@dataclass(frozen=True)
class Recovery:
    """The recovery ratio and what it is a ratio of.

    A ratio above 1 is a larger gain, or, of an adapter that is worse than its base, a larger loss: without `has_gain`
    it does not say what is kept.

    Attributes:
        ratio: (changed - base) / (adapted - base): 1 if nothing is lost, 0 if the adapter is.
        gain: adapted - base.
        change: changed - adapted.
        judged: Whether the gain is clearly not 0; otherwise the ratio is noise over noise and says nothing.
    """

    ratio: Interval
    gain: Interval
    change: Interval
    judged: bool

    @property
    def has_gain(self) -> bool:
        """Whether the adapter is clearly better than its base, so that there is something to keep."""
        return self.judged and self.gain.low > 0

    def __str__(self) -> str:
        """Such as `recovery ratio 0.998 (95 % interval 0.991 to 1.004)`."""
        if self.has_gain:
            return f"recovery ratio {self.ratio}"
        if self.judged:
            return f"recovery ratio not judged (the adapter is worse than its base: gain {self.gain})"
        return "recovery ratio not judged (the adapter's gain over its base may be 0)"


def recovery_ratio(
    base: NDArray[np.float64],
    adapted: NDArray[np.float64],
    changed: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    confidence: float = CONFIDENCE,
) -> Recovery:
    """Compares three states of a model on the same examples; intervals are of the paired jackknife.

    Higher scores are better: log-likelihoods (minus the log perplexity of a language model), hits, or minus the squared
    error.

    Args:
        base: (n,), float64: each example's score with the adapter off and the trained head kept.
        adapted: (n,), float64, with the adapter.
        changed: (n,), float64, after the change in question.
        weights: (n,), float64, such as the tokens of each example; `None` for equal weights. Examples of weight 0, and
            those with a score that is not a number in the first two states, are left out.
        confidence: In (0, 1).

    Returns:
        Ratio, gain and change; all NaN without examples.
    """
    weights = np.ones(len(base)) if weights is None else weights
    kept = (weights > 0) & np.isfinite(base) & np.isfinite(adapted)
    means = [weighted_means(scores[kept], weights[kept]) for scores in (base, adapted, changed)]
    (b, b_without), (a, a_without), (c, c_without) = means
    gain = jackknife_interval(a - b, a_without - b_without, confidence)
    change = jackknife_interval(c - a, c_without - a_without, confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = jackknife_interval(
            float(np.divide(c - b, a - b)), (c_without - b_without) / (a_without - b_without), confidence
        )
    return Recovery(ratio, gain, change, judged=not gain.contains(0.0))
