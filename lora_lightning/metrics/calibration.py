"""Confidence and accuracy by bins of confidence, and the expected calibration error."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 15


class CalibrationBins(NamedTuple):
    """What a model is confident of, in bins of equal width over [0, 1].

    Attributes:
        counts: (bins,), int64, rows in each bin.
        confidence: (bins,), float64, mean probability of the predicted class; NaN in an empty bin.
        accuracy: (bins,), float64, share of right predictions; NaN in an empty bin.
        error: The expected calibration error, in [0, 1]; NaN without rows or if a confidence is NaN.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    error: float


def calibration_bins(
    confidences: NDArray[np.float64], correct: NDArray[np.float64], bins: int = BINS
) -> CalibrationBins:
    """Sorts predictions into bins of confidence.

    Bins are equally wide and closed on the left, the last one on both sides, as in `numpy.histogram`. torchmetrics
    counts a confidence of exactly 1, which float32 reaches easily, in a bin of its own (torchmetrics#3510).

    Args:
        confidences: (rows,), float64, in [0, 1], the probability of the predicted class.
        correct: (rows,), float64, 1 if the prediction is right, else 0.
        bins: Number of bins.

    Returns:
        The bins; the error is the mean gap between confidence and accuracy over bins, each weighted by its share of
        rows.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3, with the L1 norm.
    """
    places = (np.digitize(confidences, np.linspace(0, 1, bins + 1)) - 1).clip(0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    confident, right = (np.bincount(places, weights=column, minlength=bins) for column in (confidences, correct))
    error = float(np.abs(confident - right).sum()) / len(confidences) if len(confidences) else float("nan")
    with np.errstate(invalid="ignore"):
        return CalibrationBins(counts, confident / counts, right / counts, error)


def expected_calibration_error(
    confidences: NDArray[np.float64], correct: NDArray[np.float64], bins: int = BINS
) -> float:
    """How far confidence is from accuracy.

    Args:
        confidences: As in `calibration_bins`.
        correct: As there.
        bins: Number of bins.

    Returns:
        In [0, 1]; NaN without rows or if a confidence is NaN.
    """
    return calibration_bins(confidences, correct, bins).error
