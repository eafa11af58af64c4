"""Batches of similar length, the same for every run with a seed, right under any number of processes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from lora_lightning.errors import DataError

POOL_BATCHES = 200  # rows are sorted by length within random pools of this many batches


class TokenizedDataset(Dataset[dict[str, Tensor]]):
    """Token ids of one split in one flat array; indexing with a list of rows gives a padded batch.

    Args:
        token_ids: (total tokens,), int32, the rows one after another.
        lengths: (rows,), tokens of each row.
        labels: (rows,), int64 class indices; `None` for text without labels.
        pad_token_id: Fills the space after a row that is shorter than the batch's longest.
    """

    def __init__(
        self,
        token_ids: NDArray[np.int32],
        lengths: NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        pad_token_id: int,
    ) -> None:
        self.token_ids = token_ids
        self.lengths = lengths
        self.labels = labels
        self.pad_token_id = pad_token_id
        self.ends = np.cumsum(lengths)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Builds a batch.

        Args:
            rows: Row numbers.

        Returns:
            `input_ids` and `attention_mask`, (len(rows), longest), int64; `index`, (len(rows),), int64, the row
            numbers; and `labels`, (len(rows),), int64, where there are labels.
        """
        index = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[index]
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(mask.shape, self.pad_token_id, dtype=np.int64)
        starts = self.ends[index] - lengths
        input_ids[mask] = np.concatenate(
            [self.token_ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        )
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "index": torch.from_numpy(index),
        }
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[index])
        return batch


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
        self.epoch = 0
        self.drop_last = False

    def __len__(self) -> int:
        """Number of batches of this process, the same for every process."""
        rows = len(self.lengths)
        # The second bound only matters at batch size 1: every process needs a row in every step.
        return min(-(-rows // (self.batch_size * self.num_replicas)), rows // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields lists of row numbers."""
        for batch in self._global_batches():
            yield batch[self.rank :: self.num_replicas].tolist()

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
