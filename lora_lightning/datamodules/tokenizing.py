"""Texts to flat arrays of token ids, a few thousand at a time through the fast tokenizer."""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 4096  # the tokenizer's own result is a hundred times larger than the ids in it


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    token_types: bool,
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int32]]]:
    """Tokenises texts, or pairs of texts, with the model's own marks.

    Args:
        tokenizer: The backbone's.
        texts: The texts, or the first ones of the pairs.
        pairs: The second ones, or `None`.
        max_length: Longest row in tokens; the longer text of a pair is cut first.
        token_types: Whether the model needs `token_type_ids`.

    Returns:
        Lengths, (rows,), int64; and the per-token columns `input_ids` and, if asked for, `token_type_ids`, each
        (total tokens,), int32.
    """
    names = ("input_ids", "token_type_ids")[: 1 + token_types]
    parts: dict[str, list[NDArray[np.int32]]] = {name: [] for name in names}
    lengths: list[NDArray[np.int64]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = slice(start, start + TEXTS_AT_ONCE)
        encoded = tokenizer(
            list(texts[chunk]),
            None if pairs is None else list(pairs[chunk]),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=token_types,
        )
        lengths.append(np.array([len(row) for row in encoded["input_ids"]], dtype=np.int64))
        for name in names:
            parts[name].append(_flat(encoded[name], int(lengths[-1].sum())))
    empty = np.zeros(0, dtype=np.int32)
    return (
        np.concatenate([np.zeros(0, dtype=np.int64), *lengths]),
        {name: np.concatenate([empty, *columns]) for name, columns in parts.items()},
    )


def flatten_rows(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Integers of many rows as one array.

    Args:
        rows: Integers of each row, such as its token ids.

    Returns:
        The length of each row, (rows,), int64; and all integers one after another, (total,), int32.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return lengths, _flat(rows, int(lengths.sum()))


def _flat(rows: Iterable[Iterable[int]], total: int) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=total)
