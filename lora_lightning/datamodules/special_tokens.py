"""Special tokens that a text contains literally, such as `</s>`: a tokenizer reads them as control tokens."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

PROBE = "a"
SHOWN = 5  # special tokens in a message


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that a tokenizer takes out of a text before it splits the rest.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        Special tokens by id, without the unknown token, which stands for ordinary words too.
    """
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {number: token for number, token in (added | named).items() if number != tokenizer.unk_token_id}


def note_on_control_tokens(
    tokenizer: PreTrainedTokenizerBase, lengths: NDArray[np.int64], input_ids: NDArray[np.int32], pairs: bool
) -> tuple[str, ...]:
    """Counts the rows whose texts contain special tokens, which the tokenizer has read as control tokens.

    Args:
        tokenizer: Has encoded the rows.
        lengths: (rows,), tokens of each row.
        input_ids: (total tokens,), the rows one after another, with the special tokens around the texts.
        pairs: Whether a row is a pair of texts.

    Returns:
        A note for `EncodedSplit.notes`, or nothing.
    """
    special = special_tokens_of(tokenizer)
    around = list(tokenizer(PROBE, PROBE if pairs else None)["input_ids"])
    row_of_token = np.repeat(np.arange(len(lengths)), lengths)
    found = np.zeros(len(lengths), dtype=np.bool_)
    names = []
    for number in sorted(special.keys() & set(np.unique(input_ids).tolist())):
        rows = np.bincount(row_of_token[input_ids == number], minlength=len(lengths)) > around.count(number)
        if rows.any():
            found |= rows
            names.append(special[number])
    if not names:
        return ()
    return (f"{_count(int(found.sum()), len(lengths), names)}, which the tokenizer reads as control tokens.",)


def note_on_split_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[str, ...]:
    """Counts the texts whose special tokens are read as ordinary characters (`split_special_tokens`).

    Args:
        tokenizer: The backbone's.
        texts: Of a split.

    Returns:
        A note for `EncodedSplit.notes`, or nothing.
    """
    special = special_tokens_of(tokenizer).values()
    rows = [[token for token in special if token in text] for text in texts]
    if not any(rows):
        return ()
    names = list(dict.fromkeys(token for row in rows for token in row))
    why = "because this model takes each end token for the end of a text"
    return (f"{_count(sum(map(bool, rows)), len(rows), names)}, which are read as ordinary characters, {why}.",)


def _count(found: int, rows: int, names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN])) + ", ..." * (len(names) > SHOWN)
    return f"{found} of {rows} texts contain special tokens ({shown})"
