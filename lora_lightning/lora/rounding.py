"""Perturbs merged weights as rounding does, to measure the effect of rounding alone."""

import torch
from torch import Tensor

STEPS = 1 / 12  # of the entries: a step's variance over all is that of rounding, 1/12 of a unit in the last place


@torch.no_grad()
def jitter_last_place_(weight: Tensor, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Moves one entry in twelve by a unit in the last place, up or down.

    Args:
        weight: Any shape, floating dtype; changed in place.
        dtype: Whose last place; a coarser one than the weight's if products are computed in it.
        generator: On the CPU.
    """
    draws = torch.rand(weight.shape, generator=generator)
    steps = (draws < STEPS / 2).float() - (draws > 1 - STEPS / 2).float()
    values = weight.float()
    _, exponent = torch.frexp(values)
    unit = torch.ldexp(torch.full_like(values, torch.finfo(dtype).eps / 2), exponent)
    weight.copy_(values + steps.to(weight.device) * unit)
