"""Tokenize texts of any length in bounded memory, with the very tokens that tokenizing them whole would give."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase

from lora_lightning.datamodules import tokenizing
from lora_lightning.errors import DataError

OVERLAP = 2**12  # characters that two neighbouring pieces share
CUTS_TRIED = 16  # places where the next piece may begin
DIFFERENT_TOKENS = 8  # on which two pieces have to agree where one is no proof

Tokens = NDArray[np.int64]  # (tokens, 3): id, first character in the text, one past the last


def tokenize_long_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: str
) -> Iterator[NDArray[np.int32]]:
    """Token ids of texts, without marks at their start or end and however long they are.

    Args:
        tokenizer: The backbone's.
        texts: Any number.
        where: Their file or data set, for messages.

    Yields:
        The ids of each text, (tokens,), int32.

    Raises:
        DataError: If a long text cannot be cut without changing its tokens.
    """
    for chunk in tokenizing.chunks_of(texts):
        part = list(texts[chunk])
        if len(part[0]) > tokenizing.CHARACTERS_AT_ONCE and tokenizer.is_fast:  # then it is the only one
            pieces = [piece[:, 0].astype(np.int32) for piece in _tokenize_in_pieces(tokenizer, part[0], where)]
            yield np.concatenate(pieces)
            continue
        encoded = tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in encoded["input_ids"]:
            yield np.array(ids, dtype=np.int32)


def tokenize_with_places(tokenizer: PreTrainedTokenizerBase, text: str, where: str) -> NDArray[np.int64]:
    """Token ids of a text of any length, and the character at which each token begins.

    Args:
        tokenizer: A fast one.
        text: The text.
        where: Its file or data set, for messages.

    Returns:
        The ids that `tokenize_long_texts` yields, and the first characters, shape (tokens, 2), int64.

    Raises:
        DataError: If a long text cannot be cut without changing its tokens.
    """
    return np.concatenate([piece[:, :2] for piece in _tokenize_in_pieces(tokenizer, text, where)])


def _tokenize_in_pieces(tokenizer: PreTrainedTokenizerBase, text: str, where: str) -> Iterator[Tokens]:
    """Overlapping pieces, joined where both have the same tokens at the same places.

    At its ends a piece may have other tokens than the whole text: a word is cut, a mark of the text's start is put
    before it. So the outer quarters of an overlap do not count, and the rest has to agree token by token. For byte
    pair encoding one pair of tokens is proof: a sequence is the encoding of a text if every two neighbours are that of
    theirs. So is one word where words are tokenized one by one. For the most probable tokens of a long run without
    words (Unigram) there is no proof, but the some 500 tokens that agree must be more than one repeated character.
    """
    size = tokenizing.CHARACTERS_AT_ONCE
    needed = DIFFERENT_TOKENS if isinstance(tokenizer.backend_tokenizer.model, Unigram) else 1
    begin, first = 0, 0  # of the piece in the text, and of its own tokens in its `tokens`
    tokens = _tokens_of(tokenizer, text, begin, size)
    while begin + size < len(text):
        for attempt in range(CUTS_TRIED):
            # From where a token begins, and then a character further each time: in a long run of one character the
            # tokens agree only where a piece begins as far from a token's start as the whole run does.
            cut = _token_start(tokens, begin + size - (attempt + 1) * OVERLAP) + attempt
            following = _tokens_of(tokenizer, text, cut, cut + size)
            joint = _joint(tokens, following, cut + OVERLAP // 4, cut + OVERLAP - OVERLAP // 4, needed)
            if joint is not None:
                break
        else:
            msg = (
                f"{where}: the text around character {begin + size} cannot be tokenized in pieces, because its tokens "
                "depend on where a piece begins; put spaces or line ends into it, or remove it."
            )
            raise DataError(msg)
        yield tokens[first : joint[0]]
        begin, first, tokens = cut, joint[1], following
    yield tokens[first:]


def _tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, start: int, stop: int) -> Tokens:
    encoded = tokenizer(
        text[start:stop],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    places = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2) + start
    return np.column_stack([np.array(encoded["input_ids"], dtype=np.int64), places])


def _token_start(tokens: Tokens, character: int) -> int:
    return int(tokens[np.searchsorted(tokens[:, 1], character, side="right") - 1, 1])


def _joint(left: Tokens, right: Tokens, start: int, stop: int, needed: int) -> tuple[int, int] | None:
    """The first token of each that begins in [start, stop), if all that do are the same, `needed` different ones."""
    (left_begin, left_end), (right_begin, right_end) = (
        np.searchsorted(tokens[:, 1], (start, stop)) for tokens in (left, right)
    )
    shared = left[left_begin:left_end]
    if len(np.unique(shared[:, 0])) < needed or not np.array_equal(shared, right[right_begin:right_end]):
        return None
    return int(left_begin), int(right_begin)
