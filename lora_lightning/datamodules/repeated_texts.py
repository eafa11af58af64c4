"""Texts that occur in several rows: in training and in an evaluation split, or with different labels."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn

Texts = tuple[str, ...]  # the text of a row, or both of a pair
SHOWN = 80  # characters of an example


def warn_about_repeated_texts(
    texts: Mapping[str, Sequence[Texts]], labels: Mapping[str, Sequence[Hashable]] | None = None
) -> None:
    """Counts evaluation rows whose text is in the training data too, and texts with different labels.

    Args:
        texts: The texts of each row, by split; `train` is the one that the others are compared with.
        labels: The label of each row, by split; `None` if different labels are normal, as in a regression.
    """
    for split, rows in texts.items():
        repeated = rows_in_both(texts["train"], rows) if split != "train" else []
        if repeated:
            rank_zero_warn(
                f"{len(repeated)} of {len(rows)} rows of the {split} split are also in the training data, such as "
                f"{rows[repeated[0]][0][:SHOWN]!r}; scores on them will be too high."
            )
    conflicts = texts_with_different_labels(texts, labels) if labels is not None else {}
    if conflicts:
        example, found = next(iter(conflicts.items()))
        rank_zero_warn(
            f"{len(conflicts)} text{'s' * (len(conflicts) != 1)} occur{'s' * (len(conflicts) == 1)} with different "
            f"labels, such as {example[0][:SHOWN]!r} with {' and '.join(map(repr, found))}; correct or remove the rows."
        )


def warn_about_shared_texts(train: Iterable[Texts], test: Sequence[Texts]) -> None:
    """Counts held-out test rows that have a text in common with a training row, such as the premise of a pair.

    Args:
        train: The texts of each training row.
        test: The same of the rows that `test_share` holds out.
    """
    shared = rows_with_a_known_text(train, test)
    if shared:
        rank_zero_warn(
            f"{len(shared)} of {len(test)} rows that data.test_share holds out have a text in common with a training "
            f"row, such as {test[shared[0]][0][:SHOWN]!r}; scores on them may be too high for new texts. Remove "
            "duplicates, or give test data whose texts are new."
        )


def rows_with_a_known_text(train: Iterable[Texts], other: Iterable[Texts]) -> list[int]:
    """Finds rows of which a text occurs in the training data, in any place of a pair.

    Args:
        train: The text, or both texts, of each training row.
        other: The same of other rows.

    Returns:
        Row numbers in `other`; spaces around a text do not count, and empty texts are not compared.
    """
    seen = {text for row in train for text in _stripped(row) if text}
    return [number for number, row in enumerate(other) if seen.intersection(_stripped(row))]


def rows_in_both(train: Iterable[Texts], other: Iterable[Texts]) -> list[int]:
    """Finds the rows of an evaluation split whose text occurs in the training data.

    Args:
        train: The text, or both texts, of each training row.
        other: The same of the evaluation split.

    Returns:
        Row numbers in `other`; spaces around a text do not count.
    """
    seen = {_stripped(row) for row in train}
    return [number for number, row in enumerate(other) if _stripped(row) in seen]


def texts_with_different_labels(
    texts: Mapping[str, Sequence[Texts]], labels: Mapping[str, Sequence[Hashable]]
) -> dict[Texts, list[Hashable]]:
    """Finds texts whose rows contradict each other, in one split or across splits.

    Args:
        texts: The texts of each row, by split.
        labels: The label of each row, by split.

    Returns:
        The different labels of each such text, in the order of the rows.
    """
    found: dict[Texts, dict[Hashable, None]] = defaultdict(dict)
    for split, rows in texts.items():
        for row, label in zip(rows, labels[split], strict=True):
            found[_stripped(row)][label] = None
    return {row: list(different) for row, different in found.items() if len(different) > 1}


def _stripped(row: Texts) -> Texts:
    return tuple(text.strip() for text in row)
