"""How much updates of the same layer have in common, from their factors; no (out, in) matrix is formed."""

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from lora_lightning.analysis.spectrum import in_float64
from lora_lightning.lora.delta import AdapterDelta
from lora_lightning.lora.truncation import decompose_factors

NOTHING = 1e-6  # of the largest singular value: below it, a direction is rounding
ANGLE_DRAWS = 20
Side = Literal["outputs", "inputs"]  # the column space of dW, or its row space


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
    directions = [core / torch.linalg.vector_norm(core) for core in _common_cores(first, second)]
    return float((directions[0] * directions[1]).sum().clamp(-1, 1))


@torch.no_grad()
def relative_distance(first: AdapterDelta, second: AdapterDelta) -> float:
    """Distance of two updates, ||dW1 - dW2|| / sqrt((||dW1||^2 + ||dW2||^2) / 2).

    Unlike the cosine, it sees a difference in size.

    Args:
        first: An update of a layer, any r.
        second: Another one of a layer of the same shape.

    Returns:
        In [0, 2], dimensionless, computed in float64: 0 for equal updates, sqrt(2) for orthogonal ones of the same
        size, 2 for opposite ones; NaN where both are zero.

    Raises:
        ValueError: If the layers' shapes differ.
    """
    left, right = _common_cores(first, second)
    size = ((left.square().sum() + right.square().sum()) / 2).sqrt()
    return float(torch.linalg.vector_norm(left - right) / size)


def _common_cores(first: AdapterDelta, second: AdapterDelta) -> list[Tensor]:
    """Both updates in a basis of both."""
    shapes = [(delta.B.shape[0], delta.A.shape[1]) for delta in (first, second)]
    if shapes[0] != shapes[1]:
        msg = f"{first.module} is {shapes[0]} and {second.module} {shapes[1]} (out, in): no angle between them."
        raise ValueError(msg)
    ranks = [first.r, second.r]
    b = torch.linalg.qr(torch.cat([in_float64(first.B), in_float64(second.B)], dim=1), mode="r").R.split(ranks, dim=1)
    a = torch.linalg.qr(torch.cat([in_float64(first.A), in_float64(second.A)]).T, mode="r").R.split(ranks, dim=1)
    return [delta.scaling * left @ right.T for delta, left, right in zip((first, second), b, a, strict=True)]


@torch.no_grad()
def inner_products(updates: Sequence[AdapterDelta]) -> Tensor:
    """All inner products <dWi, dWj> = si sj trace((Bi^T Bj) (Aj Ai^T)) of several updates of one layer.

    For many updates it is far faster than one pair after the other; factors that nearly cancel lose digits.

    Args:
        updates: Of a layer of the same shape, any r.

    Returns:
        (updates, updates), float64, on the CPU.

    Raises:
        ValueError: If the layers' shapes differ.
    """
    shapes = {(delta.B.shape[0], delta.A.shape[1]) for delta in updates}
    if len(shapes) > 1:
        msg = f"updates of {updates[0].module} are of the shapes {sorted(shapes)} (out, in): no angle between them."
        raise ValueError(msg)
    b = torch.cat([delta.scaling * in_float64(delta.B) for delta in updates], dim=1).cpu()
    a = torch.cat([in_float64(delta.A) for delta in updates]).cpu()
    products = (b.T @ b) * (a @ a.T)
    places = torch.repeat_interleave(torch.arange(len(updates)), torch.tensor([delta.r for delta in updates]))
    rows = products.new_zeros(len(updates), len(products)).index_add(0, places, products)
    return rows.new_zeros(len(updates), len(updates)).index_add(1, places, rows)


def cosines_of_products(products: Tensor) -> Tensor:
    """The cosines of all pairs of updates.

    Args:
        products: From `inner_products`, or sums of those of several layers.

    Returns:
        (updates, updates), float64, in [-1, 1]; NaN where an update is zero.
    """
    norms = products.diagonal().clamp(min=0).sqrt()
    return (products / norms.outer(norms)).clamp(-1, 1)


def distances_of_products(products: Tensor) -> Tensor:
    """The `relative_distance` of all pairs of updates.

    Args:
        products: From `inner_products`, or sums of those of several layers.

    Returns:
        (updates, updates), float64, in [0, 2]; differences below 1e-7 of the size are rounding. NaN where both updates
        are zero.
    """
    squares = products.diagonal()
    sums = squares[:, None] + squares[None, :]
    return ((sums - 2 * products).clamp(min=0) / (sums / 2)).sqrt()


def squares_on_one_scale(products: Tensor) -> Tensor:
    """The squared distances of all pairs of updates, in units of their mean squared norm.

    Unlike squared relative distances, whose unit is that of each pair, they add up: independent changes in squares.

    Args:
        products: From `inner_products`.

    Returns:
        (updates, updates), float64, at least 0; zeros if all updates are zero.
    """
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)
    return distances / squares.mean() if squares.any() else distances


@torch.no_grad()
def update_directions(update: AdapterDelta, side: Side) -> Tensor:
    """An orthonormal basis of the column space (`outputs`) or of the row space (`inputs`) of dW.

    Args:
        update: The update of a layer.
        side: Which space.

    Returns:
        (features, directions), float64, on the CPU; without directions that are rounding, none for a zero update.
    """
    left, values, right = decompose_factors(update.A, update.B)
    kept = values > NOTHING * values[:1]
    return left[:, kept] if side == "outputs" else right[kept].T


def principal_cosines(first: Tensor, second: Tensor) -> Tensor:
    """The cosines of the principal angles between two subspaces.

    Args:
        first: (features, r1), orthonormal columns, from `update_directions`.
        second: (features, r2), orthonormal columns.

    Returns:
        (min(r1, r2),), descending, in [0, 1]: 1 for a direction that both contain.
    """
    cosines: Tensor = torch.linalg.svdvals(first.T @ second)
    return cosines.clamp(max=1.0)


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """The mean squared cosine of the principal angles, ||Q1^T Q2||_F^2 / min(r1, r2).

    Args:
        first: (features, r1), orthonormal columns.
        second: (features, r2), orthonormal columns.

    Returns:
        In [0, 1], dimensionless: 1 if the smaller subspace lies in the larger one; NaN if one of them is empty.
    """
    smaller = min(first.shape[1], second.shape[1])
    return float((first.T @ second).square().sum() / smaller) if smaller else float("nan")


def random_overlap(features: int, r1: int, r2: int) -> float:
    """The expected `subspace_overlap` of two random subspaces; a squared entry of Q1^T Q2 is 1 / features on average.

    Args:
        features: Dimension of the space.
        r1: Dimension of one subspace.
        r2: Dimension of the other.

    Returns:
        max(r1, r2) / features.
    """
    return max(r1, r2) / features


@cache
def random_largest_angle(sides: tuple[tuple[int, int], ...]) -> float:
    """The largest principal angle between two random subspaces, a mean over draws with a fixed seed.

    Args:
        sides: (features, dimension of both subspaces) of each space; the largest angle in any of them counts.

    Returns:
        Degrees, in [0, 90].
    """
    generator = torch.Generator().manual_seed(0)
    angles = []
    for _ in range(ANGLE_DRAWS):
        least = 1.0
        for features, r in sides:
            first, second = torch.linalg.qr(torch.randn(2, features, r, generator=generator, dtype=torch.float64)).Q
            least = min(least, float(principal_cosines(first, second)[-1]))
        angles.append(math.degrees(math.acos(least)))
    return fmean(angles)


@torch.no_grad()
def rotated_factors(update: AdapterDelta, seed: int = 0) -> AdapterDelta:
    """The same update with other factors: (R^T A, B R) with a random rotation R.

    Args:
        update: The update of a layer.
        seed: Of the rotation.

    Returns:
        An update with the same dW, up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(update.r, update.r, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(drawn).Q
    a, b = rotation.T @ in_float64(update.A).cpu(), in_float64(update.B).cpu() @ rotation
    return AdapterDelta(update.module, a.float(), b.float(), update.scaling, update.expert)


def factor_cosine(first: Tensor, second: Tensor) -> float:
    """The cosine of two factors as they are stored, which says nothing about the updates: see `rotated_factors`.

    Args:
        first: A or B of one update.
        second: The same factor of another one, of the same shape.

    Returns:
        In [-1, 1], dimensionless; NaN where a factor is zero.
    """
    x, y = (in_float64(factor).flatten() for factor in (first, second))
    return float((x @ y / (x.norm() * y.norm())).clamp(-1, 1))
