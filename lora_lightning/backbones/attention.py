"""Attention with dropout that does not slow a CPU down, with the same distribution as PyTorch's.

PyTorch's fused kernel knows no dropout on a CPU: it falls back to separate operations, draws one Bernoulli number after
another, and its softmax over ten elements runs without vector instructions. For short texts that is twice the time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lora_lightning.compat.transformers import attention_implementation, sdpa_attention_forward, sdpa_mask
from lora_lightning.lora.dropout import random_signs

NAME = "cpu_dropout"


class _DropoutAttention(torch.autograd.Function):
    """D(softmax(scaling q k^T + bias)) v, where D drops elements; q, k, v: (batch, heads, tokens, head size)."""

    @staticmethod
    def forward(  # autograd passes by position
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float, p: float
    ) -> Tensor:
        batch, heads, tokens, _ = query.shape
        q, k, v = (t.reshape(batch * heads, tokens, -1) for t in (query, key, value))
        scores = _product(q, k.transpose(1, 2), scaling)
        if bias is not None:
            scores.view(batch, heads, tokens, tokens).add_(bias)
        # Row sums as products: a sum over ten elements costs as much as the attention's other parts together.
        weights = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
        weights.div_(_row_sums(weights))
        signs, factor = random_signs(weights, p)
        weights.mul_(signs)  # weights are not negative, so a minus marks a dropped one: a mask would double the memory
        ctx.save_for_backward(q, k, v, weights)
        ctx.scaling, ctx.factor = scaling, factor
        kept = torch.clamp_min(weights, 0, out=signs)
        return _split_heads(_product(kept, v, factor), heads)

    @staticmethod
    @once_differentiable  # a second derivative would lack terms; now it raises
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        heads = grad.shape[1]
        grad = grad.reshape(v.shape)
        kept = weights.clamp_min(0)
        grad_v = _product(kept.transpose(1, 2), grad, ctx.factor)
        grad_weights = _product(grad, v.transpose(1, 2), ctx.factor).mul_(kept)
        weights = torch.abs(weights, out=kept)
        grad_scores = grad_weights.addcmul_(weights, _row_sums(grad_weights), value=-1).mul_(ctx.scaling)
        grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
        return *(_split_heads(t, heads) for t in (grad_q, grad_k, grad_v)), None, None, None


def _product(x: Tensor, y: Tensor, factor: float) -> Tensor:
    return torch.baddbmm(x.new_empty(1), x, y, beta=0, alpha=factor)


def _row_sums(x: Tensor) -> Tensor:
    return torch.mv(x.view(-1, x.shape[-1]), x.new_ones(x.shape[-1])).view(*x.shape[:-1], 1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch * heads, tokens, size) as (batch, heads, tokens, size), with memory in the order that linears read."""
    return x.view(-1, heads, *x.shape[1:]).transpose(1, 2).contiguous().transpose(1, 2)


def dropout_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers asks for it; without dropout, or on other devices, it goes PyTorch's own way.

    Args:
        module: The attention layer.
        query: (batch, heads, tokens, head size), floating dtype.
        key: The same.
        value: The same.
        attention_mask: Broadcastable to (batch, heads, tokens, tokens), bool: where to attend; `None` for everywhere.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores; 1 / sqrt(head size) if not given.
        is_causal: Whether no mask means a causal one; the layer's own word if not given.
        kwargs: Passed on.

    Returns:
        (batch, tokens, heads, head size), contiguous; and `None` for the weights.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_own = dropout > 0 and _is_plain(query, key, value, attention_mask, causal=causal) and not _has_extras(kwargs)
    if not is_own:
        attended: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return attended
    bias = None
    if attention_mask is not None:
        bias = torch.zeros_like(attention_mask, dtype=query.dtype)
        bias.masked_fill_(~attention_mask, torch.finfo(query.dtype).min)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    y: Tensor = _DropoutAttention.apply(query, key, value, bias, factor, dropout)  # type: ignore[no-untyped-call]
    return y.transpose(1, 2).contiguous(), None


def _is_plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool) -> bool:
    """Whether this is self-attention on a CPU whose mask says all."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.float32
        and query.shape == key.shape == value.shape
        and (not causal if mask is None else mask.dtype == torch.bool)
        # bitsandbytes' layers give float32 there too, and the products here would turn into bfloat16.
        and not torch.is_autocast_enabled("cpu")
    )


def _has_extras(options: dict[str, Any]) -> bool:
    return any(options.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux"))


def use_dropout_attention(model: PreTrainedModel) -> None:
    """Switches a model that uses PyTorch's scaled dot product attention, in place; another model is left alone.

    Args:
        model: Its saved files do not change: a configuration does not keep the choice.
    """
    if attention_implementation(model) != "sdpa":
        return
    AttentionInterface.register(NAME, dropout_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
