"""How much two updates of the same layer have in common, from their factors."""

import torch

from lora_lightning.analysis.spectrum import in_float64
from lora_lightning.lora.delta import AdapterDelta


@torch.no_grad()
def delta_cosine(first: AdapterDelta, second: AdapterDelta) -> float:
    """Cosine of the angle between two updates, <dW1, dW2> / (||dW1|| ||dW2||) with the Frobenius product.

    It does not change when (A, B) of either becomes (R^-1 A, B R), as a cosine of A or of B alone does. Both updates
    are written in one basis, that of [B1 B2] and of [A1; A2], in which they are no larger than (r1 + r2, r1 + r2); no
    (out, in) matrix is formed, and factors that nearly cancel keep their digits.

    Args:
        first: An update of a layer, any r.
        second: Another one of a layer of the same shape.

    Returns:
        In [-1, 1], dimensionless, computed in float64; NaN where an update is zero and so has no direction.

    Raises:
        ValueError: If the layers' shapes differ.
    """
    shapes = [(delta.B.shape[0], delta.A.shape[1]) for delta in (first, second)]
    if shapes[0] != shapes[1]:
        msg = f"{first.module} is {shapes[0]} and {second.module} {shapes[1]} (out, in): no angle between them."
        raise ValueError(msg)
    ranks = [first.r, second.r]
    b = torch.linalg.qr(torch.cat([in_float64(first.B), in_float64(second.B)], dim=1), mode="r").R.split(ranks, dim=1)
    a = torch.linalg.qr(torch.cat([in_float64(first.A), in_float64(second.A)]).T, mode="r").R.split(ranks, dim=1)
    cores = [delta.scaling * left @ right.T for delta, left, right in zip((first, second), b, a, strict=True)]
    directions = [core / torch.linalg.vector_norm(core) for core in cores]
    return float((directions[0] * directions[1]).sum().clamp(-1, 1))
