"""Attention that trains fast on a CPU: with dropout, and in bfloat16 (see bfloat16_attention.py).

PyTorch's fused kernel knows no dropout on a CPU: it falls back to separate operations, draws one Bernoulli number after
another, and its softmax over ten elements runs without vector instructions. For short texts that is twice the time.
Here dropout has the same distribution.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lora_lightning.backbones.bfloat16_attention import MOST_TOKENS, bfloat16_attention
from lora_lightning.compat.transformers import attention_implementation, sdpa_attention_forward, sdpa_mask
from lora_lightning.lora.dropout import random_signs

NAME = "cpu_training"


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


def cpu_attention_forward(
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
    """Attention as transformers asks for it, in whichever way trains fastest.

    With dropout it is computed in float32. Without, a backward pass in bfloat16 has its own way, too. All else, and all
    on other devices, goes PyTorch's own way.

    Args:
        module: The attention layer.
        query: (batch, heads, tokens, head size), floating dtype.
        key: The same; without dropout perhaps with fewer heads that divide them.
        value: The same as `key`.
        attention_mask: Broadcastable to (batch, heads, tokens, tokens), bool: where to attend; `None` for everywhere.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores; 1 / sqrt(head size) if not given.
        is_causal: Whether no mask means a causal one; the layer's own word if not given.
        kwargs: Passed on.

    Returns:
        (batch, tokens, heads, head size), contiguous; and `None` for the weights.
    """
    layer_is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = layer_is_causal and attention_mask is None and query.shape[2] > 1
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    is_plain = _is_plain(query, key, value, attention_mask) and not _has_extras(kwargs)
    if is_plain and dropout > 0 and not causal and query.shape == key.shape:
        y = _attend_with_dropout(query, key, value, attention_mask, factor, dropout).to(dtype)
    elif is_plain and dropout == 0 and dtype == torch.bfloat16 and _pays_in_bfloat16(query, key, value):
        mask = _causal_mask(query.shape[2]) if causal else attention_mask
        y = bfloat16_attention(query, key, value, mask, factor)
    else:
        attended: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return attended
    return y.transpose(1, 2).contiguous(), None


def _attend_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, p: float
) -> Tensor:
    """(batch, heads, tokens, head size), float32."""
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)
    inputs = (each.float() for each in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _DropoutAttention.apply(*inputs, bias, scaling, p)  # type: ignore[no-untyped-call]
    return y


def _is_plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether this is self-attention on a CPU whose mask says all."""
    return (
        query.device.type == "cpu"
        and {each.dtype for each in (query, key, value)} <= {torch.float32, torch.bfloat16}
        and key.shape == value.shape
        and query.shape[::2] == key.shape[::2]  # as many rows and tokens: there is no cache
        and query.shape[3] == key.shape[3]
        and query.shape[1] % key.shape[1] == 0
        and (mask is None or (mask.dtype == torch.bool and mask.ndim == query.ndim and mask.shape[1] == 1))
    )


def _pays_in_bfloat16(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there will be a backward pass, of short texts."""
    needs_gradients = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    return needs_gradients and query.shape[2] <= MOST_TOKENS


def _causal_mask(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril_()[None, None]


def _has_extras(options: dict[str, Any]) -> bool:
    return any(options.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux"))


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Switches a model that uses PyTorch's scaled dot product attention, in place; another model is left alone.

    Args:
        model: Its saved files do not change: a configuration does not keep the choice.
    """
    if attention_implementation(model) != "sdpa":
        return
    AttentionInterface.register(NAME, cpu_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
