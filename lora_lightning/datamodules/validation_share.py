"""Hold out a share of the training rows for validation, and count what leaks between splits."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_lightning.errors import ConfigurationError


def check_hold_out(share: float | None, seed: int) -> None:
    """Refuses options that choose no part of the training data.

    Args:
        share: `data.validation_share`; `None` holds nothing out.
        seed: `data.split_seed`.

    Raises:
        ConfigurationError: If one is out of its range.
    """
    if share is not None and not 0 < share < 1:
        msg = f"data.validation_share is {share}, but a share in (0, 1) is needed."
        raise ConfigurationError(msg)
    if seed < 0:
        msg = f"data.split_seed is {seed}, but a seed is 0 or more."
        raise ConfigurationError(msg)


def held_out(rows: int, share: float, seed: int, classes: Sequence[int] | None = None) -> NDArray[np.bool_]:
    """Chooses rows at random, the same share of every class.

    Args:
        rows: How many there are.
        share: Of the rows to choose, in (0, 1).
        seed: Of the choice.
        classes: Class of each row; a class keeps at least one row that is not chosen. Without classes any rows.

    Returns:
        (rows,), bool: `round(share * rows)` are chosen, or fewer where classes are too small.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros(rows, dtype=np.int64) if classes is None else np.unique(classes, return_inverse=True)[1]
    sizes = np.bincount(labels)
    wanted = share * sizes
    counts = np.minimum(np.floor(wanted).astype(np.int64), sizes - 1)
    # What rounding down left over goes to the classes that lost most by it; equal losses in random order.
    loss = np.where(counts < sizes - 1, wanted - counts, -1)
    order = np.lexsort((random.random(len(sizes)), -loss))
    left = max(0, round(share * rows) - int(counts.sum()))
    counts[[number for number in order if loss[number] > 0][:left]] += 1
    chosen = np.zeros(rows, dtype=np.bool_)
    for label, count in enumerate(counts):
        chosen[random.permutation(np.flatnonzero(labels == label))[:count]] = True
    return chosen


def rows_in_both(train: Iterable[tuple[str, ...]], other: Iterable[tuple[str, ...]]) -> list[int]:
    """Finds texts of an evaluation split that training has seen.

    Args:
        train: The text, or both texts, of each training row.
        other: The same of the evaluation split.

    Returns:
        Row numbers in `other`; space around a text does not count.
    """
    seen = {_stripped(row) for row in train}
    return [number for number, row in enumerate(other) if _stripped(row) in seen]


def _stripped(row: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.strip() for text in row)
