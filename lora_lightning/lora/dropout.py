"""Dropout that is fast on a CPU.

On a CPU PyTorch draws one Bernoulli number after another, which takes a fifth of a training step of a small encoder.
Here each element of a mask takes a byte of random 64-bit words instead. On any other device, and in compiled code,
PyTorch draws the mask.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lora_lightning.compat.fake_tensors import is_fake

LEVELS = 256  # on a CPU a probability is kept to 1 / 256, but for smaller ones


def inverted_mask(x: Tensor, p: float) -> Tensor:
    """Draws a mask to multiply a tensor with, from the device's default generator.

    Args:
        x: Any shape, floating dtype; only its shape, dtype and device matter.
        p: Probability of dropping an element, in [0, 1); on a CPU, outside of compiled code, rounded to a multiple of
            1 / 256 if that is not 0.

    Returns:
        Shape and dtype of x: 0 for dropped elements, 1 / (1 - p) for all others, with the rounded p, so that the mean
        does not change.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # compiled code draws it along with what it is for
        return functional.dropout(torch.ones_like(x), p)
    if is_fake(x):
        return torch.empty_like(x)
    kept, factor = _kept(x.numel(), p)
    return torch.from_numpy(kept.astype(np.float32)).mul_(factor).view(x.shape).to(x.dtype)


def random_signs(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Draws a mask as signs, for numbers that are never negative: one tensor then holds both the numbers and the mask.

    Args:
        x: Any shape, floating dtype, on a CPU; only its shape and dtype matter.
        p: Probability of dropping an element, in [0, 1); rounded as for `inverted_mask`.

    Returns:
        Shape and dtype of x: -1 for dropped elements, which are those that `inverted_mask` drops, and 1 for all others;
        and the factor of the kept elements, 1 / (1 - p) with the rounded p.
    """
    if is_fake(x):
        return torch.empty_like(x), 1.0
    kept, factor = _kept(x.numel(), p)
    signs = kept.view(np.int8) * np.int8(2) - np.int8(1)
    return torch.from_numpy(signs.astype(np.float32)).view(x.shape).to(x.dtype), factor


def _kept(count: int, p: float) -> tuple[NDArray[np.bool_], float]:
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    if p and not dropped:  # a byte is too coarse for it, and nothing would be dropped
        return (torch.rand(count) >= p).numpy(), 1 / (1 - p)
    # NumPy compares and converts bytes with vector instructions; PyTorch takes ten times as long.
    return words.numpy().view(np.uint8)[:count] >= dropped, LEVELS / (LEVELS - dropped)


class FastDropout(nn.Dropout):
    """`nn.Dropout` with a cheaper mask on a CPU: the same distribution, but different random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements while training.

        Args:
            x: Any shape, floating dtype.

        Returns:
            Same shape and dtype.
        """
        if not self.training or self.p == 0 or x.device.type != "cpu" or self.p >= 1 or torch.compiler.is_compiling():
            return super().forward(x)
        return x * inverted_mask(x, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Replaces every plain `nn.Dropout` inside a module by `FastDropout`, in place.

    Args:
        model: Any module; subclasses of `nn.Dropout` are left alone.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p).train(child.training))
