"""A question and a long context as overlapping windows that each fit a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lora_lightning.errors import BackboneError, DataError
from lora_lightning.metrics.squad_v2 import Question

CHUNK = 1000  # texts tokenized at a time, so that a large data set's tokens never exist as Python lists all at once
PROBE = "a 0"  # of which every tokenizer knows a part

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A question and a part of its context as a model reads them; arrays have shape (tokens,).

    Attributes:
        question: Number of the question.
        input_ids: Token ids.
        token_type_ids: Which of the two texts a token belongs to, in the tokenizer's own numbering.
        char_start: First character in the context of each token, 0 outside the context.
        char_end: One past its last character, 0 outside the context; above `char_start` just where an answer may be.
        null_position: Column that stands for "there is no answer".
        start_position: Column of the first answer's first token; `null_position` if this window lacks part of it.
        end_position: Column of its last token; `null_position` if this window lacks part of it.
    """

    question: int
    input_ids: Integers
    token_type_ids: Integers
    char_start: Integers
    char_end: Integers
    null_position: int
    start_position: int
    end_position: int


@dataclass(frozen=True)
class PairLayout:
    """What a tokenizer puts around two texts.

    Attributes:
        marks: Token ids of the marks before, between and after; each may be empty.
        mark_types: Token type of each mark.
        text_types: Token type of the first and of the second text.
        cls_token_id: The token that stands for the whole, if the tokenizer has one.
    """

    marks: tuple[list[int], ...]
    mark_types: tuple[list[int], ...]
    text_types: tuple[int, int]
    cls_token_id: int | None

    @property
    def size(self) -> int:
        """Number of marks."""
        return sum(map(len, self.marks))

    def null_position(self, length: int) -> int:
        """Where "there is no answer" is read off: the CLS token, or the first token of all where there is none.

        Args:
            length: Tokens of the window.

        Returns:
            Its column.
        """
        before, _, after = self.marks
        if self.cls_token_id in after and self.cls_token_id not in before:  # XLNet's is at the end
            return length - len(after) + after.index(self.cls_token_id)
        return before.index(self.cls_token_id) if self.cls_token_id in before else 0


def pair_layout(tokenizer: PreTrainedTokenizerBase) -> PairLayout:
    """Reads the layout off an encoded pair.

    Args:
        tokenizer: A fast one.

    Returns:
        The layout.

    Raises:
        BackboneError: If the tokenizer is a slow one, which does not know where its tokens came from.
    """
    if not tokenizer.is_fast:
        msg = (
            f"the tokenizer of {tokenizer.name_or_path!r} has no fast form, which question answering needs to find an "
            "answer's characters; choose another backbone."
        )
        raise BackboneError(msg)
    encoded = tokenizer(PROBE, PROBE, return_token_type_ids=True)
    ids, types = np.array(encoded["input_ids"]), np.array(encoded["token_type_ids"])
    part = np.array([2 if text is None else text for text in encoded.sequence_ids(0)])
    first, second = np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    groups = (slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, len(ids)))
    return PairLayout(
        marks=tuple(ids[group].tolist() for group in groups),
        mark_types=tuple(types[group].tolist() for group in groups),
        text_types=(int(types[first[0]]), int(types[second[0]])),
        cls_token_id=tokenizer.cls_token_id,
    )


def window_bounds(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Where windows over a context begin and end.

    Args:
        tokens: Of the context, at least 1.
        room: Context tokens that fit a window.
        overlap: Tokens that neighbours share; below `room`, unless all tokens fit one window.

    Returns:
        (first token, one past the last) of each window; together they cover every token.
    """
    if tokens <= room:
        return [(0, tokens)]
    count = 1 - (room - tokens) // (room - overlap)
    return [(first, min(first + room, tokens)) for first in range(0, count * (room - overlap), room - overlap)]


def answer_tokens(offsets: Integers, answer: tuple[str, int]) -> tuple[int, int] | None:
    """The tokens that hold an answer.

    Args:
        offsets: (tokens, 2), first character of each token of the context and one past its last.
        answer: Text and first character.

    Returns:
        (first, last) token, or `None` if the tokenizer dropped all of the answer's characters.
    """
    text, start = answer
    char_start, char_end = offsets[:, 0], offsets[:, 1]
    inside = np.flatnonzero((char_end > start) & (char_start < start + len(text)) & (char_end > char_start))
    return (int(inside[0]), int(inside[-1])) if inside.size else None


def encode_windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
    name: str,
    split_special_tokens: bool = False,
) -> Iterator[Window]:
    """Tokenizes questions and contexts; a context is tokenized once for all of its questions.

    Args:
        questions: Any number.
        tokenizer: A fast one.
        max_length: Tokens of a window at most.
        doc_stride: Overlap of neighbouring windows, in context tokens.
        name: What to call the questions' file in messages.
        split_special_tokens: Read a special token inside a text, such as `</s>`, as ordinary characters.

    Yields:
        Every window of every question, in order.

    Raises:
        DataError: If a question leaves too little room for its context, or a context has no token; names the file and
            the question.
    """
    layout = pair_layout(tokenizer)
    for first in range(0, len(questions), CHUNK):
        chunk = questions[first : first + CHUNK]
        contexts = {context: number for number, context in enumerate(dict.fromkeys(q.context for q in chunk))}
        encoded = _encode(tokenizer, list(contexts), split_special_tokens, offsets=True)
        asked = _encode(tokenizer, [question.question.strip() for question in chunk], split_special_tokens)["input_ids"]
        for number, (question, words) in enumerate(zip(chunk, asked, strict=True), start=first):
            which = contexts[question.context]
            context = np.array(encoded["input_ids"][which], dtype=np.int64)
            offsets = np.array(encoded["offset_mapping"][which], dtype=np.int64).reshape(-1, 2)
            room = max_length - len(words) - layout.size
            _check_room(f"{name}, question {question.id!r}", len(words), len(context), room, max_length, doc_stride)
            for bounds in window_bounds(len(context), room, doc_stride):
                yield _window(number, question, words, context, offsets, bounds, layout)


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], split_special_tokens: bool, offsets: bool = False
) -> dict[str, list[list[int]]]:
    encoded: dict[str, list[list[int]]] = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        split_special_tokens=split_special_tokens,
        verbose=False,  # or it warns of texts beyond the model's length, which is what windows are for
    )
    return encoded


def _check_room(
    place: str, question_tokens: int, context_tokens: int, room: int, max_length: int, doc_stride: int
) -> None:
    if room < context_tokens and room <= doc_stride:
        msg = (
            f"{place} has {question_tokens} tokens, so that of data.max_length {max_length} {max(room, 0)} are left "
            f"for windows of its context of {context_tokens}, which must be more than data.doc_stride "
            f"{doc_stride}; raise max_length, lower doc_stride, or shorten the question."
        )
        raise DataError(msg)
    if not context_tokens:
        msg = f"{place}: the backbone's tokenizer finds no token in its context; remove the question."
        raise DataError(msg)


def _window(
    number: int,
    question: Question,
    words: list[int],
    context: Integers,
    offsets: Integers,
    bounds: tuple[int, int],
    layout: PairLayout,
) -> Window:
    first, last = bounds
    before, between, after = layout.marks
    column = len(before) + len(words) + len(between)  # of the first context token
    parts = (before, words, between, context[first:last], after)
    input_ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
    spans = np.zeros((len(input_ids), 2), dtype=np.int64)
    spans[column : column + last - first] = offsets[first:last]
    null = layout.null_position(len(input_ids))
    span = answer_tokens(offsets, question.answers[0]) if question.answers else None
    if span is None or span[0] < first or span[1] >= last:
        start, end = null, null
    else:
        start, end = (column + token - first for token in span)
    texts = ([layout.text_types[0]] * len(words), [layout.text_types[1]] * (last - first))
    types = np.array([*layout.mark_types[0], *texts[0], *layout.mark_types[1], *texts[1], *layout.mark_types[2]])
    return Window(number, input_ids, types, spans[:, 0], spans[:, 1], null, start, end)
