"""What differs on CUDA from a CPU: fused attention that keeps no scores, and masks of dropout in a byte an element."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from lora_lightning.compat.transformers import attention_implementation, sdpa_mask
from lora_lightning.lora.dropout import FastDropout
from lora_lightning.tasks import AdaptationTask

NAME = "planned_fused_attention"
FUSED = ("sdpa", "cpu_training")  # what becomes a fused kernel on CUDA


class _FusedAttention(torch.autograd.Function):
    """Allocates what a fused kernel does: it keeps its inputs, its output and the logarithm of each row's sum."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        del grad
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it, without a result.

    Args:
        module: The attention layer.
        query: (batch, heads, tokens, head size).
        key: The same, perhaps with fewer heads.
        value: The same as `key`.
        attention_mask: Broadcastable to (batch, heads, tokens, tokens); `None` for none.
        options: Not used: they change no shape.

    Returns:
        (batch, tokens, heads, head size), and `None` for the weights.
    """
    del module, options
    bias = attention_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.empty(bias.shape, dtype=query.dtype)  # the kernel takes an additive mask
    out: Tensor = _FusedAttention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


class CudaDropout(nn.Dropout):
    """Dropout with a mask in a byte an element."""

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements while training; the same shape and dtype."""
        return torch.native_dropout(x, self.p, True)[0] if self.training and self.p else x  # noqa: FBT003


def use_cuda_stand_ins(task: AdaptationTask) -> None:
    """Switches a network without values to what runs on CUDA, in place.

    Args:
        task: With its network.
    """
    for module in task.modules():
        if type(module) in {nn.Dropout, FastDropout}:
            module.__class__ = CudaDropout
    if task.auto_class is not None and attention_implementation(task.transformers_model) in FUSED:
        AttentionInterface.register(NAME, fused_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        task.transformers_model.set_attn_implementation(NAME)
