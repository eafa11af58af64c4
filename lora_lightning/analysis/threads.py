"""Solves many small problems in parallel on a CPU."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Applies a function to each item, as many at a time as torch has threads, each on one.

    LAPACK's own threads share out a single tall matrix, wait for one another at every few columns, and take a hundred
    times as long where another process holds a core.

    Args:
        function: Of one item; torch's operations let other threads run.
        items: The items.

    Returns:
        The results, in the order of the items.
    """
    with _one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Switches torch's own threads off, and yields how many there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
