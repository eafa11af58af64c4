"""Dropout that does not slow a CPU down.

PyTorch draws one Bernoulli number after another on a CPU; for a small encoder that is a fifth of a training step.
Here a mask is cut from random 64-bit words instead, a byte an element. On any other device PyTorch draws it.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 256  # on a CPU a probability is kept to 1 / 256


def inverted_mask(x: Tensor, p: float) -> Tensor:
    """Draws what to multiply with to drop elements, from the device's default generator.

    Args:
        x: Any shape, floating dtype; only its shape, dtype and device matter.
        p: Probability of dropping an element, in [0, 1); on a CPU rounded to 1 / 256.

    Returns:
        Shape and dtype of x: 0 where an element is dropped, 1 / (1 - p) elsewhere, for the rounded p, so that the
        mean stays what it was.
    """
    if x.device.type != "cpu":
        return functional.dropout(torch.ones_like(x), p)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    # NumPy compares and converts bytes with vector instructions; PyTorch takes ten times as long.
    kept = words.numpy().view(np.uint8)[: x.numel()] >= dropped
    mask = torch.from_numpy(kept.astype(np.float32)).mul_(LEVELS / (LEVELS - dropped))
    return mask.view(x.shape).to(x.dtype)


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
        return x * inverted_mask(x, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Replaces every plain `nn.Dropout` inside, in place.

    Args:
        model: Any module; subclasses of `nn.Dropout` are left alone.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p).train(child.training))
