"""Texts to flat arrays of token ids, in chunks: the result of a fast tokenizer takes about 130 bytes per character."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

TEXTS_AT_ONCE = 4096
CHARACTERS_AT_ONCE = 2**18  # 35 MiB


@dataclass(frozen=True)
class TokenizedTexts:
    """Rows of tokens, one after another.

    Attributes:
        lengths: (rows,), int64, tokens of each row.
        tokens: `input_ids` and, if asked for, `token_type_ids`, each (total tokens,), int32.
        cut: How many rows were longer than `max_length` and lost a part.
    """

    lengths: NDArray[np.int64]
    tokens: dict[str, NDArray[np.int32]]
    cut: int


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    token_types: bool,
    split_special_tokens: bool = False,
) -> TokenizedTexts:
    """Tokenizes texts, or pairs of texts, and adds the model's special tokens around them.

    Args:
        tokenizer: The backbone's.
        texts: The texts, or the first ones of the pairs.
        pairs: The second ones, or `None`.
        max_length: Longest row in tokens; of a pair, the longer text is cut first.
        token_types: Whether the model needs `token_type_ids`.
        split_special_tokens: Read a special token inside a text, such as `</s>`, as ordinary characters.

    Returns:
        The rows.
    """
    names = ("input_ids", "token_type_ids")[: 1 + token_types]
    parts: dict[str, list[NDArray[np.int32]]] = {name: [] for name in names}
    lengths: list[NDArray[np.int64]] = []
    cut = 0
    for chunk in chunks_of(
        texts if pairs is None else [first + second for first, second in zip(texts, pairs, strict=True)]
    ):
        rows = (list(texts[chunk]), None if pairs is None else list(pairs[chunk]))
        encoded = tokenizer(
            *rows,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=token_types,
            split_special_tokens=split_special_tokens,
        )
        lengths.append(np.array([len(row) for row in encoded["input_ids"]], dtype=np.int64))
        cut += _rows_cut(tokenizer, rows, encoded, np.flatnonzero(lengths[-1] >= max_length).tolist())
        for name in names:
            parts[name].append(_flat(encoded[name], int(lengths[-1].sum())))
    empty = np.zeros(0, dtype=np.int32)
    return TokenizedTexts(
        np.concatenate([np.zeros(0, dtype=np.int64), *lengths]),
        {name: np.concatenate([empty, *columns]) for name, columns in parts.items()},
        cut,
    )


def _rows_cut(
    tokenizer: PreTrainedTokenizerBase,
    rows: tuple[list[str], list[str] | None],
    encoded: BatchEncoding,
    full: Sequence[int],
) -> int:
    """How many of the rows with `max_length` tokens had more before."""
    if encoded.encodings is not None:
        return sum(bool(encoded.encodings[row].overflowing) for row in full)
    if not full:
        return 0
    first, second = ([column[row] for row in full] if column is not None else None for column in rows)
    complete = tokenizer(first, second, return_attention_mask=False, verbose=False)["input_ids"]  # a slow tokenizer
    return sum(len(ids) > len(encoded["input_ids"][row]) for row, ids in zip(full, complete, strict=True))


def chunks_of(texts: Sequence[str]) -> Iterator[slice]:
    """Divides a sequence of texts into chunks that fit into memory once tokenized.

    Args:
        texts: Any number.

    Yields:
        Consecutive slices of at most `TEXTS_AT_ONCE` texts and `CHARACTERS_AT_ONCE` characters, but at least one text.
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
    """Concatenates rows of integers.

    Args:
        rows: Integers of each row, such as its token ids.

    Returns:
        The length of each row, (rows,), int64; and the integers of all rows, (total,), int32.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return lengths, _flat(rows, int(lengths.sum()))


def _flat(rows: Iterable[Iterable[int]], total: int) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=total)
