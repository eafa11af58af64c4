"""Dropout that does not slow a CPU down.

PyTorch draws one Bernoulli number after another on a CPU; for a small encoder that is a fifth of a training step.
Here a mask is cut from random 64-bit words instead, two bytes an element. On any other device PyTorch's own runs.
"""

from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # a probability is kept to 1 / 65536


class _MaskedScale(torch.autograd.Function):
    """y = x * mask / (1 - p), remembering the mask only (a byte an element)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.ops.aten.native_dropout_backward(x, mask, scale)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(grad, mask, ctx.scale), None, None


def keep_mask(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Draws which elements survive, from PyTorch's default CPU generator.

    Args:
        shape: Shape of the mask.
        p: Probability of dropping an element, in [0, 1); rounded to 1 / 65536.

    Returns:
        The mask, bool of `shape`, and the scale 1 / (1 - p) for the rounded p, which keeps the mean unbiased.
    """
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = round(p * LEVELS)
    mask = words.view(torch.int16)[:count] >= dropped - LEVELS // 2
    return mask.view(shape), LEVELS / (LEVELS - dropped)


class FastDropout(nn.Dropout):
    """`nn.Dropout` with the cheaper mask on a CPU; same distribution, other random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements while training.

        Args:
            x: Any shape, floating dtype.

        Returns:
            Same shape and dtype.
        """
        if not self.training or self.p == 0 or x.device.type != "cpu" or self.p >= 1:
            return super().forward(x)
        mask, scale = keep_mask(x.shape, self.p)
        return _MaskedScale.apply(x, mask, scale)  # type: ignore[no-any-return,no-untyped-call]


def use_fast_dropout(model: nn.Module) -> None:
    """Replaces every plain `nn.Dropout` inside, in place.

    Args:
        model: Any module; subclasses of `nn.Dropout` are left alone.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p))
