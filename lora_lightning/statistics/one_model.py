"""Two states of one model on the same examples: what is proven holds for this model, not for the way it was trained.

Only examples vary here; `paired` is about seeds and examples.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from lora_lightning.statistics.jackknife import CONFIDENCE, Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.paired import IDENTICAL, NO_VARIANCE, PairedDifference
from lora_lightning.statistics.power import POWER, round_up

ONE_EXAMPLE = "a single example shows no variation between examples"


def example_difference(differences: NDArray[np.float64], spread: float = 0.0) -> PairedDifference:
    """Estimates the mean difference of two states of one model over examples, with a 95 % interval.

    Few examples change when a model is changed little, and if none does, that is no proof that none would: of 24
    examples without a change, one in ten might still change among all there are. So for outcomes of a bounded range one
    gain and one loss of the full range are added before the t interval is computed, as Bonett & Price do for hits.

    Source: Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", Journal of Educational and Behavioral Statistics 37(4).

    Args:
        differences: shape (examples,), float64, finite, signed so that larger is better.
        spread: The range of an example's outcome, such as 1 for hits; 0 for outcomes without bounds, which change
            whenever the model does.

    Returns:
        The mean difference of the examples given; its interval is that of the adjusted ones. Without an interval for
        fewer than two examples, or if all differences equal the same number other than 0 and `spread` is 0.
    """
    examples = len(differences)
    mean = float(differences.mean()) if examples else math.nan
    nothing = Interval(mean, math.nan, math.nan)
    if examples < 2:  # noqa: PLR2004
        return PairedDifference(nothing, 1, examples, note=ONE_EXAMPLE)
    adjusted = np.append(differences, [spread, -spread]) if spread else differences
    if not adjusted.any():
        return PairedDifference(Interval(0.0, 0.0, 0.0), 1, examples, note=IDENTICAL)
    error, freedom = float(adjusted.std(ddof=1) / math.sqrt(len(adjusted))), len(adjusted) - 1
    if error <= 1e-12 * float(np.abs(adjusted).max()):
        return PairedDifference(nothing, 1, examples, note=NO_VARIANCE)
    half, center = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error, float(adjusted.mean())
    interval = Interval(center, center - half, center + half)
    return PairedDifference(interval, 1, examples, estimates=((error, float(freedom)),))


def missing_examples(difference: PairedDifference, margin: float) -> int | None:
    """Computes how many examples a proof takes with a power of 80 %, if the observed difference is the true one.

    Args:
        difference: From `example_difference`.
        margin: Above 0, in units of the outcomes.

    Returns:
        Their number, two significant digits; `None` without an interval, or if the difference is beyond the margin.
    """
    distance = margin + min(0.0, difference.interval.value)
    if not difference.estimates or distance <= 0:
        return None
    error, _ = difference.estimates[0]
    needed = difference.examples * (error * float(ndtri(1 - ERROR_RATE) + ndtri(POWER)) / distance) ** 2
    return round_up(math.ceil(needed))
