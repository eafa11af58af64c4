"""Windows cover the context, agree with the tokenizer's own, and lose no answer that fits one."""

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import ByteLevel as ByteLevelOffsets
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lora_lightning.datamodules.context_windows import (
    Window,
    answer_tokens,
    encode_windows,
    pair_layout,
    window_bounds,
)
from lora_lightning.errors import BackboneError, DataError
from lora_lightning.metrics.squad_v2 import Question

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["who", "built", "the", "old", "stone", "bridge", "over", "this", "river", "in", "town", "?", "."]
NUMBERS = {mark: number for number, mark in enumerate(MARKS)}


def make_tokenizer(backend: Tokenizer, pair: str | None) -> PreTrainedTokenizerBase:
    if pair == "RoBERTa":
        backend.post_processor = RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=True)
    elif pair is not None:
        backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", pair, [("[CLS]", 2), ("[SEP]", 3)])
    cls = None if pair is None else "[CLS]"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]", cls_token=cls
    )


def words() -> Tokenizer:
    """A token a word; characters it does not know and all space belong to no word."""
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate([*MARKS, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return backend


def characters() -> Tokenizer:
    """A token a byte, so letters beyond ASCII are several; spaces are tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*MARKS, *alphabet, "\u0120o", "ol"])}
    backend = Tokenizer(BPE(vocabulary, merges=[("\u0120", "o"), ("o", "l")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.post_processor = ByteLevelOffsets(trim_offsets=False)
    return backend


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "as BERT": lambda: make_tokenizer(words(), "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "as RoBERTa": lambda: make_tokenizer(characters(), "RoBERTa"),
    "as GPT-2": lambda: make_tokenizer(characters(), None),
    "as Llama": lambda: make_tokenizer(words(), "[CLS] $A [CLS]:1 $B:1"),
    "as XLNet": lambda: make_tokenizer(words(), "$A [SEP] $B:1 [SEP]:1 [CLS]:2"),
}
FAMILIES = list(TOKENIZERS)


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    return TOKENIZERS[family]()


def windows_of(question: Question, family: str, max_length: int = 24, doc_stride: int = 4) -> list[Window]:
    return list(encode_windows([question], tokenizer_of(family), max_length, doc_stride, "dev.json"))


@pytest.mark.parametrize(
    ("family", "ids", "types"),
    [
        ("as BERT", [2, 4, 9, 14, 3, 6, 9, 13, 14, 3], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
        ("as Llama", [2, 4, 9, 14, 2, 6, 9, 13, 14], [0, 0, 0, 0, 1, 1, 1, 1, 1]),
        ("as XLNet", [4, 9, 14, 3, 6, 9, 13, 14, 3, 2], [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]),
    ],
)
def test_one_window_by_hand(family: str, ids: list[int], types: list[int]) -> None:
    (window,) = windows_of(Question("q", "who bridge town", "the bridge in town", (("in town", 11),)), family)
    ids = [min(14, number) for number in ids]  # town
    assert window.input_ids.tolist() == ids
    assert window.token_type_ids.tolist() == types
    column = ids.index(6)
    assert window.char_start.tolist()[column : column + 4] == [0, 4, 11, 14]
    assert window.char_end.tolist()[column : column + 4] == [3, 10, 13, 18]
    assert (window.char_end > window.char_start).sum() == 4
    assert (window.start_position, window.end_position) == (column + 2, column + 3)


@pytest.mark.parametrize(
    ("family", "column"), [("as BERT", 0), ("as RoBERTa", 0), ("as GPT-2", 0), ("as Llama", 0), ("as XLNet", 9)]
)
def test_no_answer_is_the_cls_token_or_the_first(family: str, column: int) -> None:
    (window,) = windows_of(Question("q", "who bridge town", "the bridge in town"), family, max_length=64)
    assert window.start_position == window.end_position == window.null_position == column
    assert window.char_end[column] == 0  # no answer can be there
    assert (window.input_ids[column] == 2) == (family != "as GPT-2")


@pytest.mark.parametrize("family", FAMILIES)
def test_marks_in_the_texts_are_not_taken_for_the_tokenizers_own(family: str) -> None:
    (window,) = windows_of(Question("q", "who [CLS]", "old [SEP] [CLS] town"), family, max_length=64)
    plain = windows_of(Question("q", "who town", "old town"), family, max_length=64)[0]
    expected = plain.null_position if family != "as XLNet" else len(window.input_ids) - 1
    assert window.null_position == expected


def test_space_around_a_question_takes_no_room() -> None:
    plain, padded = (
        windows_of(Question("q", text, "the old town"), "as GPT-2") for text in ("who?", " \n\t who?" + " " * 100)
    )
    assert plain[0].input_ids.tolist() == padded[0].input_ids.tolist()


def test_an_answer_is_null_in_windows_that_lack_a_part_of_it() -> None:
    context = "the old stone bridge over this river in town ."
    windows = windows_of(Question("q", "who", context, (("bridge over this", 14),)), "as BERT", 8, 1)
    seen = [context[w.char_start[5 - 2] : w.char_end[-2]] for w in windows]
    assert seen == ["the old stone bridge", "bridge over this river", "river in town ."]
    spans = [(w.start_position, w.end_position) for w in windows]
    assert spans == [(0, 0), (3, 5), (0, 0)]


def test_first_answer_is_the_one_to_learn() -> None:
    (window,) = windows_of(Question("q", "who", "the old town", (("old", 4), ("town", 8))), "as BERT")
    assert window.char_start[window.start_position] == 4


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(("old", 4), (1, 1)), (("ld to", 5), (1, 2)), (("the old town", 0), (0, 2)), ((" ", 3), None), (("!", 13), None)],
)
def test_tokens_of_an_answer(answer: tuple[str, int], expected: tuple[int, int] | None) -> None:
    assert answer_tokens(np.array([[0, 3], [4, 7], [8, 12]]), answer) == expected  # "the old town !"


def test_an_answer_without_a_token_is_null() -> None:
    (window,) = windows_of(Question("q", "who", "old   town", (("  ", 4),)), "as BERT")
    assert window.start_position == window.end_position == window.null_position


@given(tokens=st.integers(1, 300), room=st.integers(1, 60), data=st.data())
@settings(deadline=None, max_examples=300)
def test_bounds_cover_every_token_and_share_the_overlap(tokens: int, room: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    bounds = window_bounds(tokens, room, overlap)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == tokens
    assert all(0 < last - first <= room for first, last in bounds)
    for (first, last), (next_first, next_last) in itertools.pairwise(bounds):
        assert last - first == room
        assert last - next_first == overlap
        assert next_last > last


texts = st.text(st.sampled_from([*"old ?.", "é", "東", "\u200b", " "]), min_size=1, max_size=70)
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)


@st.composite
def answered(draw: st.DrawFn) -> tuple[Question, int, int]:
    """A question with an answer anywhere in its context, and settings with room for both."""
    context = draw((texts | sentences).filter(str.strip))
    start = draw(st.integers(0, len(context) - 1))
    text = context[start : draw(st.integers(start + 1, len(context)))]
    question = Question("q", draw(sentences.map(lambda text: text[:12]).filter(str.strip)), context, ((text, start),))
    doc_stride = draw(st.integers(0, 8))
    return question, 12 + 4 + doc_stride + draw(st.integers(1, 60)), doc_stride


@pytest.mark.parametrize("family", FAMILIES)
@given(case=answered())
@settings(deadline=None, max_examples=100)
def test_windows_are_the_tokenizers_own(family: str, case: tuple[Question, int, int]) -> None:
    question, max_length, doc_stride = case
    encoded = tokenizer_of(family)(
        question.question.strip(),
        question.context,
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    windows = windows_of(question, family, max_length, doc_stride)
    assert [window.input_ids.tolist() for window in windows] == encoded["input_ids"]
    assert [window.token_type_ids.tolist() for window in windows] == encoded["token_type_ids"]
    for number, window in enumerate(windows):  # tokenizers trims space off a token's place in the first window only
        spans = encoded["offset_mapping"][number]
        second = [text == 1 for text in encoded.sequence_ids(number)]
        expected = [
            question.context[slice(*span)].strip() for span, inside in zip(spans, second, strict=True) if inside
        ]
        found = zip(window.char_start[second].tolist(), window.char_end[second].tolist(), strict=True)
        assert [question.context[first:last].strip() for first, last in found] == expected
        assert not window.char_end[~np.array(second)].any()


@pytest.mark.parametrize("family", FAMILIES)
@given(case=answered())
@settings(deadline=None, max_examples=150)
def test_no_token_and_no_answer_that_fits_is_lost(family: str, case: tuple[Question, int, int]) -> None:
    question, max_length, doc_stride = case
    (answer, start), context = question.answers[0], question.context
    windows = windows_of(question, family, max_length, doc_stride)
    whole = tokenizer_of(family)(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = [list(zip(w.char_start.tolist(), w.char_end.tolist(), strict=True)) for w in windows]
    assert {span for window in spans for span in window if span[1] > span[0]} == {s for s in whole if s[1] > s[0]}
    assert all(len(window.input_ids) <= max_length for window in windows)

    overlapping = [s for s in whole if s[1] > start and s[0] < start + len(answer) and s[1] > s[0]]
    for window, in_window in zip(windows, spans, strict=True):
        found = (window.start_position, window.end_position)
        if found == (window.null_position, window.null_position):
            # Every token of the answer as often as in the whole context would be all of it.
            held = [in_window.count(span) >= whole.count(span) for span in overlapping]
            assert not overlapping or not all(held)
        else:
            text = context[window.char_start[found[0]] : window.char_end[found[1]]]
            assert window.char_start[found[0]] == overlapping[0][0]
            assert window.char_end[found[1]] == overlapping[-1][1]
            assert "".join(text.split()).find("".join(known(answer, start, overlapping, context).split())) >= 0
    answers = [w for w in windows if (w.start_position, w.end_position) != (w.null_position, w.null_position)]
    if 0 < len(overlapping) <= max(doc_stride, len(whole) if len(windows) == 1 else 0):
        assert answers  # as long as the overlap, it is whole in some window


def known(answer: str, start: int, overlapping: list[tuple[int, int]], context: str) -> str:
    """What of an answer the tokenizer kept: from its first token's character to its last's."""
    first, last = overlapping[0][0], overlapping[-1][1]
    return context[max(start, first) : min(start + len(answer), last)]


@pytest.mark.parametrize("family", ["as BERT", "as RoBERTa", "as GPT-2"])
def test_answers_of_whole_words_come_back_letter_by_letter(family: str) -> None:
    context = "the old stone bridge , over this river in town"
    for first in range(len(context.split())):
        for last in range(first, len(context.split())):
            answer = " ".join(context.split()[first : last + 1])
            question = Question("q", "who", context, ((answer, context.index(answer)),))
            (window,) = windows_of(question, family, 100)
            start, end = window.char_start[window.start_position], window.char_end[window.end_position]
            assert context[start:end].strip() == answer


@pytest.mark.parametrize("max_length", [9, 3, 1])
def test_a_question_without_room_is_named_with_the_limit(max_length: int) -> None:
    question = Question("5ad", "who built the old", "bridge over this river", ())
    with pytest.raises(DataError) as raised:
        windows_of(question, "as BERT", max_length, 2)
    assert str(raised.value) == (
        f"dev.json, question '5ad' has 4 tokens, so that of data.max_length {max_length} {max(max_length - 7, 0)} are "
        "left for windows of its context of 4, which must be more than data.doc_stride 2; raise max_length, lower "
        "doc_stride, or shorten the question."
    )
    assert len(windows_of(question, "as BERT", 10, 2)) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_that_fits_needs_no_room_for_an_overlap(family: str) -> None:
    question = Question("q", "who built the old stone", "town", ())
    for doc_stride in (0, 1, 5, 30):
        (window,) = windows_of(question, family, 64, doc_stride)
        assert window.input_ids.tolist() == windows_of(question, family, 64, 0)[0].input_ids.tolist()
    tokens = len(window.input_ids)
    assert len(windows_of(question, family, tokens, tokens - 1)) == 1
    with pytest.raises(DataError):
        windows_of(question, family, tokens - 1, tokens - 2)


def test_a_context_without_tokens_is_named() -> None:
    with pytest.raises(
        DataError, match=r"^dev\.json, question 'q7': the backbone's tokenizer finds no token in its context"
    ):
        windows_of(Question("q7", "who", "\u2003"), "as BERT")


def test_a_slow_tokenizer_is_refused() -> None:
    class SlowTokenizer:
        is_fast = False
        name_or_path = "some-model"

    with pytest.raises(BackboneError, match=r"'some-model' has no fast form, which question answering needs"):
        pair_layout(SlowTokenizer())  # type: ignore[arg-type]


def test_questions_of_many_contexts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_lightning.datamodules.context_windows.CHUNK", 3)
    questions = [Question(str(number), "who", f"old {WORDS[number % 5]} town" * 3) for number in range(8)]
    windows = list(encode_windows(questions, tokenizer_of("as BERT"), 10, 1, "dev.json"))
    assert sorted({window.question for window in windows}) == list(range(8))
    assert [window.question for window in windows] == sorted(window.question for window in windows)
    for window in windows:
        alone = windows_of(questions[window.question], "as BERT", 10, 1)
        assert any(window.input_ids.tolist() == other.input_ids.tolist() for other in alone)


def test_a_special_token_in_a_text_can_be_read_as_characters() -> None:
    question = Question("a", "who [SEP]", "old [SEP] town")
    tokenizer = tokenizer_of("as BERT")
    counts = []
    for split in (False, True):
        (window,) = encode_windows([question], tokenizer, 30, 1, "dev.json", split_special_tokens=split)
        counts.append(window.input_ids.tolist().count(tokenizer.sep_token_id))
    assert counts == [4, 2]
