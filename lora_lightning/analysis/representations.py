"""How alike two models' hidden states of the same examples are."""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "first", "last"]
FEWEST_EXAMPLES = 4  # for a CKA: three centered ones have no geometry of their own


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
    """Debiased linear centered kernel alignment: around 0 for unrelated states, 1 for equal geometry.

    It does not change when either side is rotated, shifted or scaled as a whole: what a layer after it could undo
    counts as no change. The biased one of Kornblith et al. 2019 is not used: with fewer examples than features it is
    near 1 for anything (0.90 for independent normal numbers, 64 examples of 576 features). This one is the cosine of
    two Gram matrices without their diagonals, whose rows and columns are centered without bias, so that the inner
    products are unbiased estimates of HSIC. The (examples, examples) Gram matrices are small.
    Sources: Song et al. 2012, "Feature Selection via Dependence Maximization", equation 5; Nguyen et al. 2021, "Do Wide
    and Deep Networks Learn the Same Things?", equation 3.

    Args:
        x: (examples, features of x), any floating dtype.
        y: (examples, features of y), of the same examples.

    Returns:
        float64 scalar in [-1, 1], dimensionless. NaN for fewer than four examples, and where a side does not vary over
        them (constant features, or only one example that differs): then there is no geometry to compare.
    """
    if len(x) < FEWEST_EXAMPLES:
        return torch.tensor(torch.nan, dtype=torch.float64)
    gram_x, gram_y = (_centered_gram(side) for side in (x, y))
    cka: Tensor = (gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())
    return cka.clamp(-1, 1)


def _centered_gram(x: Tensor) -> Tensor:
    """The Gram matrix with a diagonal of 0, centered so that its rows sum to 0 (Szekely & Rizzo 2014, lemma 1)."""
    x = x.double()
    centered = x - x.mean(dim=0)
    # What rounding leaves of constant features is no variation.
    noise = 8 * torch.finfo(torch.float64).eps * x.abs().amax(dim=0)
    centered = torch.where(centered.abs().amax(dim=0) <= noise, 0.0, centered)
    gram = (centered @ centered.T).fill_diagonal_(0)
    n, sums = len(gram), gram.sum(dim=0)
    found = gram - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    found.fill_diagonal_(0)
    is_noise = found.abs().amax() <= 8 * n * torch.finfo(torch.float64).eps * gram.abs().amax()
    return torch.where(is_noise, 0.0, found)
