"""Expected calibration error."""

import numpy as np
from numpy.typing import NDArray


def expected_calibration_error(confidences: NDArray[np.float64], correct: NDArray[np.float64], bins: int = 15) -> float:
    """How far confidence is from accuracy: the mean gap over bins of confidence, each weighted by its share of rows.

    Bins are equally wide and closed on the left, the last one on both sides, as in `numpy.histogram`. torchmetrics
    counts a confidence of exactly 1, which float32 reaches easily, in a bin of its own (torchmetrics#3510).

    Args:
        confidences: (rows,), float64, in [0, 1], the probability of the predicted class.
        correct: (rows,), float64, 1 if the prediction is right, else 0.
        bins: Number of bins.

    Returns:
        In [0, 1]; NaN without rows or if a confidence is NaN.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3, with the L1 norm.
    """
    if not len(confidences) or np.isnan(confidences).any():
        return float("nan")
    places = np.digitize(confidences, np.linspace(0, 1, bins + 1)) - 1
    gaps = np.bincount(places.clip(0, bins - 1), weights=confidences - correct)
    return float(np.abs(gaps).sum()) / len(confidences)
