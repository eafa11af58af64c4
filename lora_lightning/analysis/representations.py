"""How alike two models' hidden states of the same examples are."""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "first", "last"]


def pool_tokens(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector an example, of its real tokens.

    Args:
        hidden: (examples, tokens, features), any floating dtype.
        attention_mask: (examples, tokens), 1 where a token is real, at least one an example; padding may be on either
            side.
        pooling: `mean` over the real tokens, or the `first` or the `last` of them.

    Returns:
        (examples, features), float32.
    """
    real = attention_mask.bool()
    if pooling == "mean":
        # Not a product with the mask: padding may hold anything, even NaN.
        summed = hidden.float().masked_fill(~real[..., None], 0.0).sum(dim=1)
        return summed / real.sum(dim=1, keepdim=True)
    places = torch.arange(real.shape[1], device=real.device).expand_as(real)
    if pooling == "first":
        chosen = places.masked_fill(~real, real.shape[1]).amin(dim=1)
    else:
        chosen = places.masked_fill(~real, -1).amax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen].float()


def row_cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosine between the two vectors of each example.

    Args:
        x: (examples, features), any floating dtype.
        y: The same shape.

    Returns:
        (examples,), float64, dimensionless, in [-1, 1]; NaN where a vector is zero and so has no direction.
    """
    x, y = x.double(), y.double()
    cosines: Tensor = (x * y).sum(dim=1) / (x.norm(dim=1) * y.norm(dim=1))
    return cosines.clamp(-1, 1)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear centered kernel alignment, \|Yc^T Xc\|_F^2 / (\|Xc^T Xc\|_F \|Yc^T Yc\|_F), of centered columns.

    It does not change when either side is rotated, shifted or scaled as a whole: what a layer after it could undo
    counts as no change. It is computed from the (examples, examples) Gram matrices, which are small.
    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equation 1.

    Args:
        x: (examples, features of x), any floating dtype.
        y: (examples, features of y), of the same examples.

    Returns:
        float64 scalar in [0, 1], dimensionless; 1 for equal geometry. NaN where a side does not vary over the
        examples (one example, or constant features): then there is no geometry to compare.
    """
    gram_x, gram_y = (_centered_gram(side) for side in (x, y))
    cka: Tensor = (gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())
    return cka.clamp(0, 1)


def _centered_gram(x: Tensor) -> Tensor:
    x = x.double()
    centered = x - x.mean(dim=0)
    # What rounding leaves of constant features is no variation.
    noise = 8 * torch.finfo(torch.float64).eps * x.abs().amax(dim=0)
    centered = torch.where(centered.abs().amax(dim=0) <= noise, 0.0, centered)
    return centered @ centered.T
