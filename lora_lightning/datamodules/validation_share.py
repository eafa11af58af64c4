"""Hold out a share of the training rows for validation, or for test."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_lightning.errors import ConfigurationError


def check_hold_out(validation_share: float | None, test_share: float | None, seed: int) -> None:
    """Refuses values that hold out nothing or everything.

    Args:
        validation_share: `data.validation_share`; `None` to hold out nothing.
        test_share: `data.test_share`; `None` to hold out nothing.
        seed: `data.split_seed`.

    Raises:
        ConfigurationError: If one is out of its range.
    """
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if share is not None and not 0 < share < 1:
            msg = f"data.{name} is {share}, but it must be in (0, 1)."
            raise ConfigurationError(msg)
    if seed < 0:
        msg = f"data.split_seed is {seed}, but it must be at least 0."
        raise ConfigurationError(msg)


def check_no_other_test(test_share: float | None, where: str) -> None:
    """Refuses to hold out test rows of data that has a test split with labels.

    Args:
        test_share: `data.test_share`; `None` to hold out nothing.
        where: The test split's file or data set.

    Raises:
        ConfigurationError: If test rows are to be held out.
    """
    if test_share is not None:
        msg = (
            f"data.test_share is {test_share}, but there are already test rows with labels, in {where}; leave out "
            "data.test_share to test on them, or the test data to test on held-out training rows."
        )
        raise ConfigurationError(msg)


def held_out(rows: int, share: float, seed: int, classes: Sequence[int] | None = None) -> NDArray[np.bool_]:
    """Chooses rows at random, the same share of every class.

    Args:
        rows: Number of rows.
        share: Share of the rows to choose, in (0, 1).
        seed: Random seed.
        classes: Class of each row; at least one row of each class is not chosen. `None` chooses among all rows alike.

    Returns:
        (rows,), bool: `round(share * rows)` are chosen, or fewer if classes are too small.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros(rows, dtype=np.int64) if classes is None else np.unique(classes, return_inverse=True)[1]
    sizes = np.bincount(labels)
    wanted = share * sizes
    counts = np.minimum(np.floor(wanted).astype(np.int64), sizes - 1)
    # The classes that lost most by rounding down get what is left over; ties are broken at random.
    loss = np.where(counts < sizes - 1, wanted - counts, -1)
    order = np.lexsort((random.random(len(sizes)), -loss))
    left = max(0, round(share * rows) - int(counts.sum()))
    counts[[number for number in order if loss[number] > 0][:left]] += 1
    chosen = np.zeros(rows, dtype=np.bool_)
    for label, count in enumerate(counts):
        chosen[random.permutation(np.flatnonzero(labels == label))[:count]] = True
    return chosen
