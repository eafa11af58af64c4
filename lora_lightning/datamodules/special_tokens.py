"""Special tokens that a text contains literally, such as `</s>`: a tokenizer reads them as control tokens."""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

SHOWN = 5  # special tokens in a message


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that a tokenizer takes out of a text before it splits the rest.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        Special tokens as text, without the unknown token, which stands for ordinary words too.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return (added | set(tokenizer.all_special_tokens)) - {tokenizer.unk_token}


def note_on_control_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[str, ...]:
    """Counts the texts with special tokens in them, which the tokenizer reads as control tokens.

    Args:
        tokenizer: The backbone's.
        texts: Of a split.

    Returns:
        A note for `EncodedSplit.notes`, or nothing.
    """
    return _note(tokenizer, texts, "which the tokenizer reads as control tokens")


def note_on_split_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[str, ...]:
    """Counts the texts whose special tokens are read as ordinary characters (`split_special_tokens`).

    Args:
        tokenizer: The backbone's.
        texts: Of a split.

    Returns:
        A note for `EncodedSplit.notes`, or nothing.
    """
    why = "because this model counts the tokens that separate and end texts"
    return _note(tokenizer, texts, f"which are read as ordinary characters, {why}")


def _note(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], reading: str) -> tuple[str, ...]:
    special = re.compile("|".join(map(re.escape, sorted(special_tokens_of(tokenizer), key=len, reverse=True))))
    rows = [set(special.findall(text)) for text in texts] if special.pattern else []
    if not any(rows):
        return ()
    names = sorted(set[str]().union(*rows))
    shown = ", ".join(map(repr, names[:SHOWN])) + ", ..." * (len(names) > SHOWN)
    return (f"{sum(map(bool, rows))} of {len(rows)} texts contain special tokens ({shown}), {reading}.",)
