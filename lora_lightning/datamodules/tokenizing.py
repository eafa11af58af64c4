"""Texts to flat arrays of token ids, a part at a time: a fast tokenizer's own result is far larger than the ids.

It takes about 130 bytes for each character.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 4096
CHARACTERS_AT_ONCE = 2**18  # 35 MiB


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
    for chunk in chunks_of(
        texts if pairs is None else [first + second for first, second in zip(texts, pairs, strict=True)]
    ):
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


def chunks_of(texts: Sequence[str]) -> Iterator[slice]:
    """Parts of a sequence of texts that can be tokenised at once.

    Args:
        texts: Any number.

    Yields:
        Consecutive parts of at most `TEXTS_AT_ONCE` texts and `CHARACTERS_AT_ONCE` characters, but at least one text.
    """
    start = characters = 0
    for number, text in enumerate(texts):
        characters += len(text)
        if number > start and (number - start == TEXTS_AT_ONCE or characters > CHARACTERS_AT_ONCE):
            yield slice(start, number)
            start, characters = number, len(text)
    if len(texts) > start:
        yield slice(start, len(texts))


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
