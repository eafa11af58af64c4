"""Cross entropy of a linear head without ever holding all logits: on a CPU, and of 16 bits anywhere.

As separate operations, logits, their logarithmic softmax and the gradients of both are four passes over the largest
tensors of a step, each in memory that the system has to clear first. Here a few rows at a time go through all of it
while they are in the CPU's cache, in one buffer that is used again; the backward pass has its gradients already.

Losses and sums are float32 by name: with `trainer.precision=bf16-true` or `16-true` Lightning makes 16 bits the default
dtype of a step, and new tensors would get it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_lightning.compat.fake_tensors import block_starts

MOST_ROWS = 512  # whose logits are held together; more make no product faster
LOGITS_AT_ONCE = 2**24  # 64 MiB of float32, unless the vocabulary has more than 131,072 tokens
FEWEST_ROWS = 128  # so that the head's weights are not read too often
CACHED = 2**18  # logits that go through the softmax together: 1 MiB of float32, half of a usual second-level cache


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows of -log softmax(h W^T + b)[label]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, at_once: int | None
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        losses = torch.empty(len(labels), device=hidden.device, dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        grad_bias = torch.zeros(len(weight), device=hidden.device, dtype=torch.float32) if of_bias else None
        rows = min(MOST_ROWS, max(FEWEST_ROWS, LOGITS_AT_ONCE // len(weight)))
        buffer = hidden.new_empty(min(rows, len(labels)), len(weight))
        for start in block_starts(hidden, len(labels), rows):
            part = slice(start, start + rows)
            logits = buffer[: len(labels[part])]
            torch.mm(hidden[part], weight.t(), out=logits)
            if bias is not None:
                logits.add_(bias)
            _replace_by_gradients(logits, labels[part], losses[part], at_once)
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, logits.t(), hidden[part])
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        return losses.sum()

    @staticmethod
    @once_differentiable  # a second derivative would lack terms; now it raises
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # In float32: a GPU would round the factor itself, such as one over the labels, to 16 bits.
        return *(None if each is None else (each.float() * grad).to(dtype) for each, dtype in found), None, None


def _add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """Adds x @ y in place; in float32 without another tensor of that size."""
    if x.dtype == total.dtype:
        total.addmm_(x, y)
    else:
        total += x @ y


def _replace_by_gradients(logits: Tensor, labels: Tensor, losses: Tensor, at_once: int | None) -> None:
    """Writes each row's loss, and over its logits their gradient: softmax - 1 at the label."""
    rows = len(labels) if at_once is None else max(1, at_once // logits.shape[1])
    for start in block_starts(logits, len(labels), rows):
        part = slice(start, start + rows)
        found, places = logits[part].float(), labels[part, None]  # float32 logits stay where they are
        at_label = found.gather(1, places)
        largest = found.amax(dim=1, keepdim=True)
        sums = found.sub_(largest).exp_().sum(dim=1, keepdim=True)
        losses[part] = (largest + sums.log() - at_label).squeeze(1)
        found.div_(sums).scatter_add_(1, places, -torch.ones_like(at_label))
        if logits.dtype != torch.float32:
            logits[part] = found


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, on_cpu: bool = True
) -> Tensor:
    """Cross entropy of the logits `hidden @ weight.T + bias`, differentiable once.

    Args:
        hidden: (rows, features), float32, bfloat16 or float16.
        weight: (classes, features), the same dtype.
        bias: (classes,), the same dtype or float32, or `None`.
        labels: (rows,), int64, each of a class.
        on_cpu: Whether the softmax works on as many logits as a CPU caches, or on all that are held.

    Returns:
        The sum over rows, float32 scalar, in nats. With 16 bits, logits and their gradients are rounded to them, and
        all else is computed in float32, as autocast does.
    """
    at_once = CACHED if on_cpu else None
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, at_once)  # type: ignore[no-untyped-call]
    return loss
