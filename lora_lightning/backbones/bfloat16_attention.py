"""Attention of short texts in bfloat16 on a CPU, in few large products.

PyTorch's fused kernel multiplies the small blocks of each head one after another. For texts of up to a hundred tokens
that takes several times as long in bfloat16 as in float32. Here one batched product serves many heads. As the kernel,
it keeps no attention weights for the backward pass, but the logarithms of their sums.

Source: Dao et al. 2022, FlashAttention, appendix B.4.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_lightning.compat.fake_tensors import block_starts

MOST_TOKENS = 128  # beyond, PyTorch's own is as fast
SCORES_AT_ONCE = 2**21  # 8 MiB of float32


class _Bfloat16Attention(torch.autograd.Function):
    """softmax(scaling q k^T + bias) v; see `bfloat16_attention`."""

    @staticmethod
    def forward(  # autograd passes by position
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float
    ) -> Tensor:
        out = torch.empty_like(query)
        for part in _parts(query):
            q, k, v = _by_group(query[part], key[part], value[part])
            weights = _weights(q, k, bias, part, scaling).to(q.dtype)
            out[part] = torch.bmm(weights, v).view(out[part].shape)
        ctx.save_for_backward(query, key, value, out, bias)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable  # a second derivative would lack terms; now it raises
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, bias = ctx.saved_tensors
        found = [torch.empty(each.shape, dtype=each.dtype) for each in (query, key, value)]
        for part in _parts(query):
            q, k, v = _by_group(query[part], key[part], value[part])
            g, o = (each[part].reshape(q.shape) for each in (grad, out))
            weights = _weights(q, k, bias, part, ctx.scaling)
            dots = (g.float() * o.float()).sum(dim=-1, keepdim=True)
            grad_scores = torch.bmm(g, v.transpose(1, 2)).float().sub_(dots).mul_(weights).to(q.dtype)
            products = (
                _product(grad_scores, k, ctx.scaling),
                _product(grad_scores.transpose(1, 2), q, ctx.scaling),
                torch.bmm(weights.to(q.dtype).transpose(1, 2), g),
            )
            for whole, product in zip(found, products, strict=True):
                whole[part] = product.view(whole[part].shape)
        return *found, None, None


def _product(x: Tensor, y: Tensor, factor: float) -> Tensor:
    return torch.baddbmm(x.new_empty(1), x, y, beta=0, alpha=factor)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, part: slice, scaling: float) -> Tensor:
    """(groups, heads of a group * tokens, tokens), float32."""
    scores = _product(q, k.transpose(1, 2), scaling).float()
    if bias is not None:
        rows = bias if len(bias) == 1 else bias[part]
        scores.view(len(rows), -1, *(2 * k.shape[1:2])).add_(rows)
    return scores.softmax(dim=-1)


def _parts(query: Tensor) -> Iterator[slice]:
    """Slices of the batch whose scores are held together."""
    rows, heads, tokens, _ = query.shape
    at_once = max(1, SCORES_AT_ONCE // (heads * tokens**2))
    return (slice(start, start + at_once) for start in block_starts(query, rows, at_once))


def _by_group(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(groups, heads of a group * tokens, head size), and each group's keys and values, (groups, tokens, head size)."""
    rows, groups, tokens, size = key.shape
    shared = rows * groups, tokens, size
    return query.reshape(rows * groups, -1, size), key.reshape(shared), value.reshape(shared)


def bfloat16_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention that is computed in bfloat16 on a CPU, differentiable once.

    Args:
        query: (batch, heads, tokens, head size), floating dtype; converted to bfloat16.
        key: (batch, groups, tokens, head size), where groups divide heads: as many heads share one.
        value: The same as `key`.
        mask: (batch or 1, 1, tokens or 1, tokens), bool: where to attend; `None` for everywhere.
        scaling: Factor of the scores.

    Returns:
        (batch, heads, tokens, head size), bfloat16. Products are rounded to it; exponentials and sums are float32.
    """
    bias = None
    if mask is not None:  # added, since filling what is masked takes six times as long
        bias = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
    inputs = (each.to(torch.bfloat16) for each in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Bfloat16Attention.apply(*inputs, bias, scaling)  # type: ignore[no-untyped-call]
    return out
