"""Batching by length: every row once, the same under any number of processes, little padding."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler
from transformers import PreTrainedTokenizerBase

from lora_lightning.datamodules.batching import EncodedSplit, LengthGroupedBatchSampler, TokenizedDataset
from lora_lightning.datamodules.tokenizing import flatten_rows
from lora_lightning.errors import DataError

Lengths = NDArray[np.int64]
PAD = 7


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Lengths, int, int, bool]:
    """Lengths of the rows, batch size, number of processes, shuffled or not."""
    processes = draw(st.integers(1, 4))
    rows = draw(st.integers(processes, 500))
    longest = draw(st.sampled_from([1, 3, 60]))
    lengths = np.random.default_rng(draw(st.integers(0, 99))).integers(1, longest + 1, rows)
    return lengths, draw(st.integers(1, 40)), processes, draw(st.booleans())


def epoch_of(
    lengths: Lengths, batch_size: int, processes: int, shuffle: bool, epoch: int = 0, seed: int = 3
) -> list[list[list[int]]]:
    """Batches of one epoch by rank, then step."""
    ranks = []
    for rank in range(processes):
        sampler = LengthGroupedBatchSampler(lengths, batch_size, shuffle, seed, processes, rank)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(sampler) == len(ranks[-1])
    return ranks


def padding_share(lengths: Lengths, batches: list[list[int]]) -> float:
    space = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - int(lengths.sum()) / space


@given(layouts())
@settings(deadline=None, max_examples=150)
def test_every_row_comes_once_and_ranks_take_equally_many_nonempty_batches(
    layout: tuple[Lengths, int, int, bool],
) -> None:
    lengths, batch_size, processes, shuffle = layout
    ranks = epoch_of(lengths, batch_size, processes, shuffle)
    assert sorted(row for batches in ranks for batch in batches for row in batch) == list(range(len(lengths)))
    assert len({len(batches) for batches in ranks}) == 1
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size + (batch_size == 1)
    assert max(sizes) - min(sizes) <= 1
    steps = [sum(len(batch) for batch in step) for step in zip(*ranks, strict=True)]
    assert max(steps) - min(steps) <= 1


@given(layouts())
@settings(deadline=None, max_examples=100)
def test_processes_have_other_rows_and_as_many_tokens(layout: tuple[Lengths, int, int, bool]) -> None:
    """Neighbours by length go to different processes: in a step they differ by a row's length at most."""
    lengths, *_ = layout
    for step in zip(*epoch_of(*layout), strict=True):
        rows = [row for batch in step for row in batch]
        assert len(set(rows)) == len(rows)
        tokens = [int(lengths[batch].sum()) for batch in step]
        longest, shortest = int(lengths[rows].max()), int(lengths[rows].min())
        uneven = len({len(batch) for batch in step}) > 1
        # Twice, for a step across two pools: its rows fall in length and rise again.
        assert max(tokens) - min(tokens) <= 2 * (longest - shortest) + uneven * longest


@given(layouts())
@settings(deadline=None, max_examples=100)
def test_several_processes_take_the_steps_of_one_with_a_larger_batch(layout: tuple[Lengths, int, int, bool]) -> None:
    lengths, batch_size, processes, shuffle = layout
    if batch_size == 1 and len(lengths) % processes:
        return  # the documented exception: every process needs a row in every step
    ranks = epoch_of(lengths, batch_size, processes, shuffle)
    (alone,) = epoch_of(lengths, batch_size * processes, 1, shuffle)
    assert [sorted(chain.from_iterable(step)) for step in zip(*ranks, strict=True)] == [
        sorted(batch) for batch in alone
    ]


@given(layouts())
@settings(deadline=None, max_examples=50)
def test_longest_row_is_in_the_first_step(layout: tuple[Lengths, int, int, bool]) -> None:
    lengths, batch_size, processes, shuffle = layout
    ranks = epoch_of(lengths, batch_size, processes, shuffle)
    first_step = [row for batches in ranks for row in batches[0]]
    assert lengths[first_step].max() == lengths.max()


@given(layouts(), st.integers(0, 2**32 - 1), st.integers(0, 50))
@settings(deadline=None, max_examples=50)
def test_an_epoch_is_the_same_whenever_it_is_asked_for(
    layout: tuple[Lengths, int, int, bool], seed: int, epoch: int
) -> None:
    """As a run resumed at that epoch asks for it, which has drawn none of the epochs before."""
    lengths, batch_size, processes, shuffle = layout
    samplers = [
        LengthGroupedBatchSampler(lengths, batch_size, shuffle, seed, processes, rank) for rank in range(processes)
    ]
    for earlier in (0, epoch + 1):
        for sampler in samplers:
            sampler.set_epoch(earlier)
            list(sampler)
    for sampler in samplers:
        sampler.set_epoch(epoch)
    assert [list(sampler) for sampler in samplers] == epoch_of(lengths, batch_size, processes, shuffle, epoch, seed)


@given(layouts(), st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_padding_fills_exactly_what_a_row_lacks(layout: tuple[Lengths, int, int, bool], pad: int) -> None:
    lengths, batch_size, processes, shuffle = layout
    tokens = 100 + np.arange(lengths.sum(), dtype=np.int32)  # no token is the padding's
    ends = np.cumsum(lengths)
    dataset = TokenizedDataset(EncodedSplit(lengths, {"input_ids": tokens}), {"input_ids": pad})
    for batch in epoch_of(lengths, batch_size, processes, shuffle)[-1]:
        found = dataset[batch]
        assert found["input_ids"].shape[1] == lengths[batch].max()
        assert torch.equal(found["attention_mask"] == 0, found["input_ids"] == pad)
        for place, row in enumerate(batch):
            kept = found["input_ids"][place][found["attention_mask"][place] == 1]
            assert kept.tolist() == tokens[ends[row] - lengths[row] : ends[row]].tolist()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    np.random.seed(1)
    torch.manual_seed(1)
    first = epoch_of(lengths, 8, 2, shuffle=True)
    np.random.seed(2)
    torch.manual_seed(2)
    assert epoch_of(lengths, 8, 2, shuffle=True) == first
    assert epoch_of(lengths, 8, 2, shuffle=True, epoch=1) != first
    assert epoch_of(lengths, 8, 2, shuffle=True, seed=4) != first
    rows = [[frozenset(batch) for batch in epoch_of(lengths, 8, 1, shuffle=True, epoch=epoch)[0]] for epoch in (0, 1)]
    shared = set(rows[0]) & set(rows[1])  # other batches, not only another order of the same ones
    assert len(shared) < len(rows[0]) / 4


def test_evaluation_order_is_the_same_every_epoch_and_longest_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    (batches,) = epoch_of(lengths, 8, 1, shuffle=False)
    assert epoch_of(lengths, 8, 1, shuffle=False, epoch=5, seed=9) == [batches]
    assert (np.diff(lengths[np.concatenate(batches)]) <= 0).all()


def test_batches_come_in_random_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 2000)
    (batches,) = epoch_of(lengths, 10, 1, shuffle=True)
    means = [float(lengths[batch].mean()) for batch in batches[1:]]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


@pytest.mark.parametrize("rows", [2000, 15000])  # one pool of 200 batches, several pools
def test_little_of_a_batch_is_padding(rows: int) -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(2.5, 0.5, rows), 3, 64).astype(np.int64)
    (grouped,) = epoch_of(lengths, 32, 1, shuffle=True)
    scattered = padding_share(lengths, [part.tolist() for part in np.array_split(random.permutation(rows), rows // 32)])
    assert scattered > 0.4
    assert padding_share(lengths, grouped) < 0.05
    assert padding_share(lengths, epoch_of(lengths, 32, 1, shuffle=False)[0]) < 0.05


def test_lightning_sees_a_distributed_sampler_with_its_processes_and_rank() -> None:
    sampler = LengthGroupedBatchSampler(np.ones(9, dtype=np.int64), 2, True, num_replicas=3, rank=2)
    assert isinstance(sampler, DistributedSampler)
    assert (sampler.num_replicas, sampler.rank, sampler.drop_last) == (3, 2, False)


def test_fewer_rows_than_processes_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"3 rows for 4 processes; use fewer processes or more data"):
        LengthGroupedBatchSampler(np.ones(3, dtype=np.int64), 2, True, num_replicas=4)


@pytest.fixture
def rows() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(10, 99, length).tolist() for length in (5, 1, 8, 3, 3, 12)]


def dataset_of(rows: list[list[int]], pad: int = PAD, **columns: NDArray[Any]) -> TokenizedDataset:
    lengths, ids = flatten_rows(rows)
    return TokenizedDataset(EncodedSplit(lengths, {"input_ids": ids}, columns), {"input_ids": pad})


@pytest.fixture
def dataset(rows: list[list[int]]) -> TokenizedDataset:
    return dataset_of(rows, labels=np.array([4, 0, -1, 2, 2, 1]))


def test_batch_holds_the_asked_rows_padded_on_the_right(dataset: TokenizedDataset, rows: list[list[int]]) -> None:
    batch = dataset[[3, 1, 0]]
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (3, 5),
        "attention_mask": (3, 5),
        "index": (3,),
        "labels": (3,),
    }
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["input_ids"].tolist() == [rows[3] + [PAD] * 2, rows[1] + [PAD] * 4, rows[0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1] * 5]
    assert batch["index"].tolist() == [3, 1, 0]
    assert batch["labels"].tolist() == [2, 0, 4]
    assert len(dataset) == len(rows)


def test_text_without_labels_gives_batches_without_labels(rows: list[list[int]]) -> None:
    assert set(dataset_of(rows)[[0]]) == {"input_ids", "attention_mask", "index"}


def test_every_column_keeps_its_shape_dtype_and_padding(rows: list[list[int]]) -> None:
    lengths, ids = flatten_rows(rows)
    regression = np.array([0.5, -1, 2, 3, 4, 5], dtype=np.float32)
    classes = np.eye(6, 4, dtype=np.float32)
    split = EncodedSplit(lengths, {"input_ids": ids, "labels": ids + 1}, {"score": regression, "classes": classes})
    batch = TokenizedDataset(split, {"input_ids": PAD, "labels": -100, "not there": 1})[[3, 1]]
    assert batch["labels"].tolist() == [[token + 1 for token in rows[3]], [rows[1][0] + 1, -100, -100]]
    assert batch["labels"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [rows[3], [*rows[1], PAD, PAD]]
    assert batch["score"].tolist() == [3, -1]
    assert batch["classes"].equal(torch.tensor([[0.0, 0, 0, 1], [0, 1, 0, 0]]))


def test_a_column_without_a_padding_value_is_refused(rows: list[list[int]]) -> None:
    lengths, ids = flatten_rows(rows)
    with pytest.raises(KeyError, match="labels"):
        TokenizedDataset(EncodedSplit(lengths, {"input_ids": ids, "labels": ids}), {"input_ids": PAD})


@pytest.mark.parametrize("kind", ["tokens", "rows"])
def test_a_shifted_column_is_refused(rows: list[list[int]], kind: str) -> None:
    lengths, ids = flatten_rows(rows)
    columns: dict[str, Any] = {"tokens": {"input_ids": ids}, "rows": {"labels": lengths}}
    assert EncodedSplit(lengths, **columns).lengths is lengths
    columns[kind] = {name: column[:-1] for name, column in columns[kind].items()}
    with pytest.raises(ValueError, match=r"the column '\w+' has \d+ entries where \d+ are needed"):
        EncodedSplit(lengths, **columns)


def test_batches_equal_the_tokenizers_own_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["play some jazz", "what is my balance", "hi", "book a flight to rome for two people please"]
    ids = tokenizer(texts)["input_ids"]
    dataset = dataset_of(ids, pad=tokenizer.pad_token_id)
    for chosen in ([0, 1, 2, 3], [2], [3, 0], [2, 2]):
        expected = tokenizer.pad({"input_ids": [ids[row] for row in chosen]}, return_tensors="pt")
        batch = dataset[chosen]
        assert batch["input_ids"].equal(expected["input_ids"])
        assert batch["attention_mask"].equal(expected["attention_mask"])


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_yields_the_samplers_batches_unchanged(dataset: TokenizedDataset, workers: int) -> None:
    sampler = LengthGroupedBatchSampler(dataset.lengths, 2, shuffle=True, seed=1)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [batch["index"].tolist() for batch in batches] == list(sampler)
    for batch in batches:
        expected = dataset[batch["index"].tolist()]
        assert all(batch[name].equal(expected[name]) for name in expected)
