"""Batches of similar length, the same for every run with a seed, right under any number of processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lora_lightning.errors import DataError

POOL_BATCHES = 200  # rows are sorted by length within random pools of this many batches


@dataclass(frozen=True)
class EncodedSplit:
    """One split as the model takes it: rows of tokens of different lengths, in flat arrays.

    Attributes:
        lengths: (rows,), int64, tokens of each row.
        tokens: Per-token columns by name, each (total tokens,), the rows one after another: `input_ids` always,
            where needed others such as `token_type_ids`, or `labels` of a language model.
        rows: Per-row columns by name, first axis rows: `labels`, (rows,) int64 classes, (rows, classes) float32, or
            (rows,) float32 targets of a regression.
        notes: What the model does not see as the data has it, such as texts that were cut: a sentence each, to follow
            the name of the split in a warning.

    Raises:
        ValueError: If a column's first axis does not fit `lengths`.
    """

    lengths: NDArray[np.int64]
    tokens: dict[str, NDArray[Any]]
    rows: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that every column fits; a shifted column would train on wrong labels without a word."""
        for columns, size in ((self.tokens, int(self.lengths.sum())), (self.rows, len(self.lengths))):
            for name, column in columns.items():
                if len(column) != size:
                    msg = f"the column {name!r} has {len(column)} entries where {size} are needed"
                    raise ValueError(msg)


class TokenizedDataset(Dataset[dict[str, Tensor]]):
    """One encoded split; indexing with a list of rows gives a padded batch.

    Args:
        split: The rows.
        padding: By per-token column, what fills the space after a row that is shorter than the batch's longest.
    """

    def __init__(self, split: EncodedSplit, padding: Mapping[str, int]) -> None:
        self.split = split
        self.padding = {name: padding[name] for name in split.tokens}
        self.lengths = split.lengths
        self.starts = np.cumsum(split.lengths) - split.lengths

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Builds a batch.

        Args:
            rows: Row numbers.

        Returns:
            The per-token columns and `attention_mask`, (len(rows), longest), int64; `index`, (len(rows),), int64,
            the row numbers; and the per-row columns, (len(rows), ...), with their own dtype.
        """
        index = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[index]
        places = np.arange(lengths.max())
        mask = places < lengths[:, None]
        positions = (self.starts[index][:, None] + places)[mask]
        batch = {"attention_mask": torch.from_numpy(mask.astype(np.int64)), "index": torch.from_numpy(index)}
        for name, column in self.split.tokens.items():
            padded = np.full(mask.shape, self.padding[name], dtype=np.int64)
            padded[mask] = column[positions]
            batch[name] = torch.from_numpy(padded)
        return batch | {name: torch.from_numpy(column[index]) for name, column in self.split.rows.items()}


class LateDataLoader(DataLoader[Any]):
    """A loader that begins when its first batch is asked for.

    Lightning makes the iterator before it tells the sampler the epoch of a resumed run, and workers would by then have
    begun with the batches of epoch 0.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields batches."""
        yield from super().__iter__()


class LengthGroupedBatchSampler(DistributedSampler[list[int]]):
    """Yields the row numbers of one batch at a time, rows of similar length together.

    Every row comes exactly once an epoch, over all processes: nothing is dropped, nothing is repeated. Rows are
    first dealt into global batches, whose sizes differ by one at most, and each process takes its share of every
    global batch, so that all processes take the same number of steps and two processes with batch 16 see the rows
    of one process with batch 32. Order depends on `seed` and the epoch only. It is a `DistributedSampler` so that
    Lightning leaves it in place and tells it the epoch; use it as `DataLoader(..., sampler=..., batch_size=None)`.

    Args:
        lengths: (rows,), tokens of each row.
        batch_size: Rows a process gets at most in a step (two at batch size 1 where rows and processes don't divide).
        shuffle: Random order of rows and batches; otherwise sorted by length, longest first.
        seed: Of the order.
        num_replicas: Number of processes.
        rank: This process.
        start: Asked when an epoch begins, says (epoch, batches): that epoch begins after so many batches, as a resumed
            run's first one does.

    Raises:
        DataError: If there are fewer rows than processes.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        start: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        if len(lengths) < num_replicas:
            msg = f"the split has {len(lengths)} rows for {num_replicas} processes; use fewer processes or more data."
            raise DataError(msg)
        self.lengths = lengths
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.start = start
        self.epoch = 0
        self.drop_last = False

    def __len__(self) -> int:
        """Number of batches of this process, the same for every process."""
        rows = len(self.lengths)
        # The second bound only matters at batch size 1: every process needs a row in every step.
        return min(-(-rows // (self.batch_size * self.num_replicas)), rows // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields lists of row numbers."""
        epoch, batches = self.start() if self.start is not None else (0, 0)
        for batch in self._global_batches()[batches if epoch == self.epoch else 0 :]:
            yield batch[self.rank :: self.num_replicas].tolist()

    def rows_of(self, batches: int) -> int:
        """Counts the rows of the first batches of all processes.

        Args:
            batches: Of each process.
        """
        return sum(len(batch) for batch in self._global_batches()[:batches])

    def _global_batches(self) -> list[NDArray[np.int64]]:
        if not self.shuffle:
            return np.array_split(np.argsort(-self.lengths, kind="stable"), len(self))
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        pool = POOL_BATCHES * self.batch_size * self.num_replicas
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            # Down in one pool, up in the next: a batch across two pools stays even too.
            direction = -1 if (start // pool) % 2 == 0 else 1
            order[start : start + pool] = rows[np.argsort(direction * self.lengths[rows], kind="stable")]
        batches = np.array_split(order, len(self))
        batches = [batches[index] for index in random.permutation(len(batches))]
        # The longest first: later batches fit into the memory it took, and too little memory shows at once.
        longest = max(range(len(batches)), key=lambda index: int(self.lengths[batches[index]].max()))
        batches.insert(0, batches.pop(longest))
        return batches
