"""Precision, recall and F1 of each label, from counts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LabelScore(NamedTuple):
    """How well one label is predicted, in one split.

    Attributes:
        label: Its name.
        precision: Share of the rows predicted to have it that do have it, in [0, 1]; `None` if it is never predicted.
        recall: Share of the rows that have it for which it is predicted; `None` if no row has it.
        f1: Harmonic mean of the two; `None` if the label is neither predicted nor there.
        support: Number of rows that have it.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def label_scores(names: Sequence[str], counts: NDArray[np.int64]) -> list[LabelScore]:
    """Scores each label.

    Args:
        names: The labels, in the order of their indices.
        counts: (labels, 3), int64: rows for which the label is rightly predicted, all for which it is predicted, and
            all that have it.

    Returns:
        The scores, in the same order.
    """
    return [
        LabelScore(name, _share(right, said), _share(right, true), _share(2 * right, said + true), true)
        for name, (right, said, true) in zip(names, counts.tolist(), strict=True)
    ]


def worst_first(scores: Sequence[LabelScore]) -> list[LabelScore]:
    """Sorts labels by F1, the lowest first; of equal ones those with more rows come first.

    Args:
        scores: Of all labels.

    Returns:
        The labels with an F1; one without it can be neither good nor bad.
    """
    known = [score for score in scores if score.f1 is not None]
    return sorted(known, key=lambda score: (score.f1, -score.support))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
