"""Blocks lose no token, repeat none, and keep documents whole."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lightning.datamodules.packing import (
    IGNORED,
    best_fit_decreasing,
    cut_stream,
    one_document_a_row,
    pack_documents,
)


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def test_stream_by_hand() -> None:
    blocks = cut_stream(ids([1, 2, 3, 4, 5, 6]), 2)
    assert blocks.lengths.tolist() == [2, 2, 1]
    assert blocks.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert blocks.labels.tolist() == [2, 3, 4, 5, 6]


@given(st.lists(st.integers(0, 2**31 - 1), max_size=60), st.integers(1, 12))
def test_every_token_of_a_stream_but_the_first_is_predicted_once_from_what_precedes_it(
    stream: list[int], context_length: int
) -> None:
    blocks = cut_stream(ids(stream), context_length)
    assert blocks.input_ids.tolist() == stream[:-1]
    assert blocks.labels.tolist() == stream[1:]
    assert blocks.lengths.sum() == max(len(stream) - 1, 0)
    assert all(length == context_length for length in blocks.lengths[:-1])
    assert all(1 <= length <= context_length for length in blocks.lengths)


def test_documents_by_hand() -> None:
    documents = [
        (ids([1, 2, 3]), np.array([False, False, True])),
        (ids([4, 5, 6, 7, 8]), np.array([True, False, True, True, True])),
        (ids([9, 10]), np.array([False, True])),
    ]
    blocks, position_ids, block_of_document = pack_documents(documents, 5)
    assert block_of_document.tolist() == [1, 0, 0]
    assert blocks.lengths.tolist() == [5, 2]
    assert blocks.input_ids.tolist() == [4, 5, 6, 7, 9, 1, 2]
    assert blocks.labels.tolist() == [IGNORED, 6, 7, 8, 10, IGNORED, 3]
    assert position_ids.tolist() == [0, 1, 2, 3, 0, 0, 1]


def test_a_row_for_every_document() -> None:
    documents = [
        (ids([1, 2, 3]), np.array([False, False, True])),
        (ids([9, 10]), np.array([False, True])),
        (ids([4, 5, 6, 7, 8]), np.array([True, False, True, True, True])),
    ]
    rows = one_document_a_row(documents)
    assert rows.lengths.tolist() == [2, 1, 4]
    assert rows.input_ids.tolist() == [1, 2, 9, 4, 5, 6, 7]
    assert rows.labels.tolist() == [IGNORED, 3, 10, IGNORED, 6, 7, 8]


@given(st.lists(st.tuples(st.integers(2, 13), st.randoms(use_true_random=False)), max_size=40))
def test_packed_documents_come_back_whole(drawn: list[tuple[int, object]]) -> None:
    documents = []
    for number, (length, random) in enumerate(drawn):
        tokens = ids([100 * number + place for place in range(length)])  # tells document and place
        documents.append((tokens, np.array([random.random() < 0.5 for _ in range(length)])))  # type: ignore[attr-defined]
    blocks, position_ids, block_of_document = pack_documents(documents, 12)
    starts = np.flatnonzero(position_ids == 0)
    ends = np.append(starts, len(blocks.input_ids))[1:]
    block_ends = np.cumsum(blocks.lengths)
    seen = set()
    for start, end in zip(starts, ends, strict=True):
        tokens, learnt = documents[blocks.input_ids[start] // 100]
        assert blocks.input_ids[start:end].tolist() == tokens[:-1].tolist()
        assert position_ids[start:end].tolist() == list(range(len(tokens) - 1))
        assert blocks.labels[start:end].tolist() == [
            token if learn else IGNORED for token, learn in zip(tokens[1:].tolist(), learnt[1:], strict=True)
        ]
        number = int(blocks.input_ids[start] // 100)
        seen.add(number)
        assert block_of_document[number] == np.searchsorted(block_ends, start, side="right")
    assert len(seen) == len(starts) == len(documents)
    assert set(block_ends.tolist()) <= set(ends.tolist())  # no document lies across two blocks
    assert not len(blocks.lengths) or blocks.lengths.max() <= 12


@given(st.lists(st.integers(1, 30), max_size=80), st.integers(30, 40))
def test_bins_hold_every_item_once_and_never_overflow(sizes: list[int], capacity: int) -> None:
    items = np.array(sizes, dtype=np.int64)
    bins = best_fit_decreasing(items, capacity)
    assert sorted(item for members in bins for item in members) == list(range(len(sizes)))
    loads = [int(items[members].sum()) for members in bins]
    assert all(0 < load <= capacity for load in loads)
    # Best-fit-decreasing opens no bin while another has room, so two bins never fit into one.
    assert all(first + second > capacity for n, first in enumerate(loads) for second in loads[:n])


def test_an_item_goes_where_the_least_room_is_left() -> None:
    # 6 and 5 open bins with 4 and 5 free; 4 fits both and goes to the first; 3 then only fits the second.
    assert best_fit_decreasing(np.array([3, 4, 5, 6]), 10) == [[3, 1], [2, 0]]


@pytest.mark.parametrize("sizes", [[0, 3], [4, 11]])
def test_items_that_cannot_be_packed_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit bins of 10"):
        best_fit_decreasing(np.array(sizes), 10)


def test_fifty_thousand_documents_are_packed_quickly_and_tightly() -> None:
    sizes = np.random.default_rng(0).integers(20, 900, 50_000)
    start = time.perf_counter()
    bins = best_fit_decreasing(sizes, 1024)
    assert time.perf_counter() - start < 5  # 0.1 s on an idle core
    assert len(bins) <= 1.02 * sizes.sum() / 1024
