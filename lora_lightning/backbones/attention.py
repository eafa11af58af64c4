"""Attention that trains fast on a CPU: with dropout, and short texts in bfloat16.

PyTorch's fused kernel knows no dropout on a CPU: it falls back to separate operations, draws one Bernoulli number after
another, and its softmax over ten elements runs without vector instructions. For short texts that is twice the time.
Here dropout has the same distribution.

In bfloat16 the kernel's backward pass takes several times as long as in float32 where a text is short, so there it
computes in float32, which is more accurate, too. Compiled code fuses the separate operations and needs neither.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lora_lightning.compat.transformers import attention_implementation, sdpa_attention_forward, sdpa_mask
from lora_lightning.lora.dropout import random_signs

NAME = "cpu_training"
ASKS = re.compile(r"_attn_implementation\s*(==|!=|in|not in)\s.*sdpa")  # in the source of an architecture
SHORT = 128  # tokens, up to which attention in bfloat16 trains faster in float32
MODERATE = 512  # tokens, up to which compiled code may hold all weights; memory grows with their square


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

    With dropout, and for short texts that train in bfloat16, it is computed in float32. All else, and all on other
    devices, goes PyTorch's own way.

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
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    is_plain = _is_plain(query, key, value, attention_mask) and not _has_extras(kwargs)
    if is_plain and torch.compiler.is_compiling() and query.shape[2] <= MODERATE:
        y = _attend_in_steps(query, key, value, attention_mask, factor, dropout, causal=causal)
        return y.to(dtype).transpose(1, 2).contiguous(), None
    if is_plain and dropout > 0 and query.shape == key.shape and (attention_mask is not None or not causal):
        y = _attend_with_dropout(query, key, value, attention_mask, factor, dropout)
        return y.to(dtype).transpose(1, 2).contiguous(), None
    options: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
    if is_plain and dropout == 0 and dtype == torch.bfloat16 and _is_short_and_trains(query, key, value):
        with torch.autocast("cpu", enabled=False):
            q, k, v = (each.float() for each in (query, key, value))
            y, _ = sdpa_attention_forward(module, q, k, v, attention_mask, **options)
        return y.to(dtype), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


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


def _attend_in_steps(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, p: float, *, causal: bool
) -> Tensor:
    """(batch, heads, tokens, head size); the steps between the two products become one in compiled code."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(repeats, dim=1) if repeats > 1 else each for each in (key, value))
    scores = (query @ key.transpose(2, 3)).float() * scaling
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    weights = functional.dropout(scores.softmax(dim=-1), p)
    return weights.to(value.dtype) @ value


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


def _is_short_and_trains(query: Tensor, key: Tensor, value: Tensor) -> bool:
    needs_gradients = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    return needs_gradients and query.shape[2] <= SHORT


def _has_extras(options: dict[str, Any]) -> bool:
    return any(options.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux"))


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Switches a model that uses PyTorch's scaled dot product attention, in place; another model is left alone.

    So is one whose layers ask for that name to decide what they compute: sparse attention (DeepSeek V3.2, MiniMax M3)
    leaves its selection to a mask under the names that transformers knows, and under others to the attention function.

    Args:
        model: Its saved files do not change: a configuration does not keep the choice.
    """
    if attention_implementation(model) != "sdpa" or _asks_for_the_name(model):
        return
    AttentionInterface.register(NAME, cpu_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _asks_for_the_name(model: PreTrainedModel) -> bool:
    names = {type(module).__module__ for module in model.modules()}
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names if not name.startswith("torch.")]
    return any(file is None or ASKS.search(Path(file).read_text(encoding="utf-8")) for file in files)
