"""How many tokens the answers of a question answering split have, and which of them no window holds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.metrics.squad_v2 import Question


def answer_lengths(split: EncodedSplit, questions: Sequence[Question]) -> dict[int, int]:
    """Counts the tokens of each question's answer.

    Args:
        split: Its windows, from `SquadV2DataModule.encode`.
        questions: Its questions.

    Returns:
        Tokens by number of the question, for the questions whose first answer some window holds in full. In training
        only the first answer counts; in evaluation, where any of several answers is right, the shortest does.
    """
    columns = split.rows
    lengths: dict[int, int] = {}
    starts = np.cumsum(split.lengths) - split.lengths
    for window in np.flatnonzero(columns["start_positions"] != columns["null_position"]):
        number = int(columns["question"][window])
        length = int(columns["end_positions"][window] - columns["start_positions"][window]) + 1
        if "char_start" in split.tokens and len(questions[number].answers) > 1:
            place = slice(starts[window], starts[window] + split.lengths[window])
            spans = np.stack([split.tokens[name][place] for name in ("char_start", "char_end")])
            others = (_tokens_of_answer(spans, answer) for answer in questions[number].answers[1:])
            length = min([length, *(tokens for tokens in others if tokens)])
        lengths[number] = min(length, lengths.get(number, length))
    return lengths


def _tokens_of_answer(spans: NDArray[np.int32], answer: tuple[str, int]) -> int:
    """Tokens of an answer in a window, whose tokens have `spans` (2, tokens) in the context; 0 if it is not all there.

    Args:
        spans: First characters, and one past the last; both 0 outside the context.
        answer: Text and first character.
    """
    text, start = answer
    first, last = spans
    inside = np.flatnonzero((last > start) & (first < start + len(text)) & (last > first))
    is_complete = inside.size and first[inside[0]] <= start and last[inside[-1]] >= start + len(text)
    return int(inside.size) if is_complete else 0


def note_on_lost_answers(
    split: EncodedSplit, questions: Sequence[Question], max_length: int, doc_stride: int
) -> tuple[str, ...]:
    """Counts the answers that lie across the windows of their context, or of which the tokenizer leaves nothing.

    Args:
        split: Its windows.
        questions: Its questions.
        max_length: Tokens of a window.
        doc_stride: Tokens that neighbouring windows share.

    Returns:
        A note for `EncodedSplit.notes`, or nothing.
    """
    answered = sum(bool(question.answers) for question in questions)
    lost = answered - len(answer_lengths(split, questions))
    if not lost:
        return ()
    note = (
        f"{lost} of {answered} answers are in no window of data.max_length {max_length} tokens in full, and are learnt "
        f"and scored as unanswerable; raise max_length, or data.doc_stride {doc_stride}."
    )
    return (note,)
