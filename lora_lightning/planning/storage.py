"""Counts the bytes of live tensors while operations on tensors without values run."""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_lightning.compat.fake_tensors import ASKS_FOR_DEVICE, TorchDispatchMode, tree_leaves

ITEM = "aten::_local_scalar_dense"
IN_PLACE = {"aten::index_put_", "aten::_index_put_impl_"}
ALIGNMENT = 64  # bytes, of PyTorch's allocator on a CPU


@dataclass(frozen=True)
class Peak:
    """Bytes at the moment of the largest sum.

    Attributes:
        activations: Of everything that is neither a weight nor a gradient of one.
        gradients: Of the gradients of weights.
    """

    activations: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.activations + self.gradients


class StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what lives beside the weights; `peak` is the most since `start_phase`.

    Without values nobody knows how many labels a batch has, so all positions are taken to have one. A question about
    values, such as whether a mask leaves everything visible, is answered with `all_true`.

    Args:
        weights: Tensors that are not counted.
        all_true: Whether masks are full.
    """

    def __init__(self, weights: Iterable[Tensor], *, all_true: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all_true = all_true
        self._ignored = {id(tensor.untyped_storage()) for tensor in weights}
        self._kept = [tensor.untyped_storage() for tensor in weights]  # an identity is unique while its object lives
        self._sizes: dict[int, int] = {}
        self._gradients: set[int] = set()
        self._live = self._live_gradients = 0
        self.peak = Peak()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts the storages of its results."""
        del types
        if func is ASKS_FOR_DEVICE:  # of a tensor without values, several times an operation
            return args[0].fake_device
        result = self._answer(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def start_phase(self) -> None:
        """Counts the peak from now on."""
        self.peak = Peak(self._live - self._live_gradients, self._live_gradients)

    def mark_gradient(self, parameter: Tensor) -> None:
        """Counts a parameter's gradient as such; called when it is complete."""
        if parameter.grad is None:
            return
        self._count(parameter.grad)
        key = id(parameter.grad.untyped_storage())
        if key in self._sizes and key not in self._gradients:
            self._gradients.add(key)
            self._live_gradients += self._sizes[key]

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes or key in self._ignored:
            return
        size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        self._sizes[key] = size
        self._live += size
        weakref.finalize(storage, self._forget, key)
        if self._live > self.peak.total:
            self.peak = Peak(self._live - self._live_gradients, self._live_gradients)

    def _forget(self, key: int) -> None:
        size = self._sizes.pop(key)
        self._live -= size
        if key in self._gradients:
            self._gradients.discard(key)
            self._live_gradients -= size

    def _answer(self, func: Any, args: tuple[Any, ...]) -> Any:
        """The result of an operation that depends on values; `None` for all others."""
        name = func.name()
        if name == ITEM:  # what `item` and `bool` become
            return self.all_true if args[0].dtype == torch.bool else torch.ones((), dtype=args[0].dtype).item()
        if name == "aten::equal":
            return True
        if name == "aten::nonzero":
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        return None if (mask := _boolean_index(args)) is None else _indexed(name, args[0], mask)


def _indexed(name: str, tensor: Tensor, mask: Tensor) -> Tensor | None:
    """The result of reading or writing at a mask, all of which is true."""
    if name == "aten::index.Tensor":
        return tensor.reshape(mask.numel(), *tensor.shape[mask.ndim :]).clone()
    if name in IN_PLACE:
        return tensor
    return tensor.clone() if name == "aten::index_put" else None


def _boolean_index(args: tuple[Any, ...]) -> Tensor | None:
    """The mask in `x[mask]`, if that is what is indexed with."""
    if len(args) < 2 or not isinstance(args[1], list | tuple) or not args[1]:  # noqa: PLR2004
        return None
    first = args[1][0]
    return first if isinstance(first, Tensor) and first.dtype == torch.bool else None


def storages_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module, each storage once."""
    found: dict[int, Tensor] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        found.setdefault(id(tensor), tensor)
    return list(found.values())
