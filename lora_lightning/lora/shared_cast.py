"""One cast of an activation for all layers that read it.

Under autocast each layer that reads an activation casts it anew, so query, key and value keep three copies of the same
numbers until the backward pass. Here they keep one. Gradients go their own way to the activation itself, in its dtype.
"""

import threading
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_lightning.compat.torch import in_place_changes


@dataclass(frozen=True)
class _Cast:
    source: weakref.ref[Tensor]
    changes: int
    result: Tensor

    def is_of(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether x is the same tensor with the same numbers as when it was cast."""
        return self.source() is x and self.changes == in_place_changes(x) and self.result.dtype == dtype


class _Latest(threading.local):
    def __init__(self) -> None:
        self.casts: list[_Cast] = []  # one at most; a list, so that a tensor that goes in another thread can empty it


_latest = _Latest()


def shared_cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts the numbers of an activation, or returns this thread's latest cast if that was of the same ones.

    A cast goes when its activation does, and has no part in any graph. It is not shared where a change could go
    unnoticed: among inference tensors, which do not count their changes, and on GPUs, where a captured graph would miss
    it. A change through `x.data` or NumPy goes unnoticed, as everywhere in autograd.

    Args:
        x: Any shape, floating dtype.
        dtype: Another one, floating.

    Returns:
        Shape of x, without gradient; not to be changed in place.
    """
    if torch.is_inference_mode_enabled() or x.is_inference() or x.device.type != "cpu":
        return x.detach().to(dtype)
    casts = _latest.casts
    latest = next(iter(casts), None)
    if latest is not None and latest.is_of(x, dtype):
        return latest.result
    result = x.detach().to(dtype)
    casts[:] = [_Cast(weakref.ref(x, lambda _: casts.clear()), in_place_changes(x), result)]
    return result
