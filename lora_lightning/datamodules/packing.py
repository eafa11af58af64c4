"""Arrange tokens in rows: a stream cut into blocks, complete documents packed into blocks, or one document a row.

Labels are shifted here and not in the model: the label of a position is the token that comes after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100  # label of a position without loss; torch's own default

Document = tuple[NDArray[np.int32], NDArray[np.bool_]]  # token ids, and which of them have a loss; (tokens,) each


@dataclass(frozen=True)
class Blocks:
    """Rows of tokens in flat arrays, one row after another.

    Attributes:
        input_ids: (positions,), int32.
        labels: (positions,), int32, the token that follows each position, or `IGNORED`.
        lengths: (rows,), int64, positions of each row; their sum is `positions`.
        documents: (positions,), int32, the number of the document that each label belongs to.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    lengths: NDArray[np.int64]
    documents: NDArray[np.int32]


def cut_stream(tokens: NDArray[np.int32], context_length: int, documents: NDArray[np.int32] | None = None) -> Blocks:
    """Cuts a stream of tokens into blocks, without padding; no token is lost.

    The inputs are all tokens but the last, the labels all but the first, and both are cut at the same places: a
    block's last label is the next block's first input. So every token but the first of the stream is predicted
    exactly once, from at most `context_length` tokens of its own block, and a perplexity over the blocks counts
    each token once.

    Args:
        tokens: (tokens,), int32.
        context_length: Positions a block has; only the last block may have fewer.
        documents: (tokens,), int32, the number of each token's document; `None` for one document.

    Returns:
        The blocks; none for fewer than two tokens.
    """
    positions = max(len(tokens) - 1, 0)
    full, rest = divmod(positions, context_length)
    lengths = np.array([context_length] * full + [rest] * (rest > 0), dtype=np.int64)
    of_labels = np.broadcast_to(np.int32(0), positions) if documents is None else documents[1:]
    return Blocks(tokens[:positions], tokens[1:], lengths, of_labels)


def pack_documents(
    documents: Sequence[Document], context_length: int
) -> tuple[Blocks, NDArray[np.int32], NDArray[np.int64]]:
    """Puts complete documents into as few blocks as best-fit-decreasing finds.

    A document's last token is only predicted, never an input, so `n` tokens take `n - 1` positions.

    Args:
        documents: Of 2 to `context_length` + 1 tokens each.
        context_length: Positions a block has at most.

    Returns:
        The blocks, in the order in which they were opened, the documents in each from long to short; the place of
        each position in its document, (positions,), int32; and the block of each document, (documents,), int64.

    Raises:
        ValueError: If a document has fewer than two tokens or does not fit into a block.
    """
    sizes = np.array([len(tokens) - 1 for tokens, _ in documents], dtype=np.int64)
    bins = best_fit_decreasing(sizes, context_length)
    block_of_document = np.zeros(len(documents), dtype=np.int64)
    for block, members in enumerate(bins):
        block_of_document[members] = block
    order = [document for members in bins for document in members]
    rows = one_document_a_row([documents[document] for document in order])
    places = np.concatenate([np.empty(0, dtype=np.int32), *(np.arange(size, dtype=np.int32) for size in rows.lengths)])
    lengths = np.array([int(sizes[members].sum()) for members in bins], dtype=np.int64)
    numbers = np.repeat(np.array(order, dtype=np.int32), rows.lengths)
    return Blocks(rows.input_ids, rows.labels, lengths, numbers), places, block_of_document


def one_document_a_row(documents: Sequence[Document]) -> Blocks:
    """Gives every document a row of its own, for models that cannot keep several in one row apart.

    Args:
        documents: Of at least 2 tokens each; the last one is only predicted, never an input.

    Returns:
        The rows, in the order of the documents.
    """
    empty: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]  # concatenate needs one
    input_ids = [tokens[:-1] for tokens, _ in documents]
    labels = [np.where(has_loss[1:], tokens[1:], np.int32(IGNORED)) for tokens, has_loss in documents]
    lengths = np.array([len(tokens) for tokens in input_ids], dtype=np.int64)
    numbers = np.repeat(np.arange(len(documents), dtype=np.int32), lengths)
    return Blocks(np.concatenate(empty + input_ids), np.concatenate(empty + labels), lengths, numbers)


def best_fit_decreasing(sizes: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Bin packing: items from large to small, each into the fullest bin that still has room for it.

    At most 11/9 of the fewest possible bins, plus one (Johnson 1973). A bit for each amount of free room finds the
    bin at once: 50,000 items take a fraction of a second.

    Args:
        sizes: (items,), each in [1, capacity].
        capacity: Of a bin.

    Returns:
        Item numbers by bin; every item in exactly one bin.

    Raises:
        ValueError: If an item is empty or larger than a bin.
    """
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= capacity:
        msg = f"sizes from {sizes.min()} to {sizes.max()} do not fit bins of {capacity}."
        raise ValueError(msg)
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by free room
    rooms = 0  # bit r is set where a bin with r free exists
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            place = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, place = capacity, len(bins)
            bins.append([])
        bins[place].append(item)
        with_room[room - size].append(place)
        rooms |= 1 << (room - size)
    return bins
