"""Private names of PyTorch 2.13: tensors that have a shape, a dtype and a device, and no values; modes that see all."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "ASKS_FOR_DEVICE",
    "FakeTensorMode",
    "TorchDispatchMode",
    "block_starts",
    "errors_of_shapes_hidden",
    "is_fake",
    "tree_leaves",
]

ASKS_FOR_DEVICE = torch.ops.prim.device.default  # what `tensor.device` becomes under a mode


def is_fake(tensor: Tensor) -> bool:
    """Returns whether a tensor has no values, so that nothing may be drawn for it in NumPy."""
    return type(tensor) is FakeTensor


def block_starts(tensor: Tensor, stop: int, step: int) -> range:
    """Returns where blocks of a tensor start that are computed one after another.

    Args:
        tensor: Of any kind; without values only the first block counts, since all others take the same memory.
        stop: Where the last one ends.
        step: Their length.
    """
    return range(0, min(stop, step) if is_fake(tensor) else stop, step)


@contextmanager
def errors_of_shapes_hidden() -> Iterator[None]:
    """Keeps PyTorch from printing an operation's error before it raises it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
