"""Attention in bfloat16: a float64 reference, gradients, masks, shared heads, and when PyTorch's own is used."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lora_lightning.backbones import attention, bfloat16_attention
from lora_lightning.backbones.attention import cpu_attention_forward
from lora_lightning.compat.fake_tensors import FakeTensorMode

BATCH, HEADS, TOKENS, SIZE = 5, 6, 9, 8
ROUNDING = 2**-7  # relative, of a whole tensor: a few times the last bit of bfloat16


def qkv(groups: int = HEADS, tokens: int = TOKENS, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Queries, keys and values laid out as a linear layer leaves them."""
    torch.manual_seed(0)
    flat = [torch.randn(BATCH, tokens, heads, SIZE) for heads in (HEADS, groups, groups)]
    return [x.to(torch.bfloat16).to(dtype).transpose(1, 2).detach().requires_grad_() for x in flat]


def layer(groups: int = HEADS, *, causal: bool = False) -> Any:
    return SimpleNamespace(is_causal=causal, num_key_value_groups=HEADS // groups, training=True)


def padding() -> Tensor:
    lengths = torch.tensor([9, 3, 1, 8, 5])
    return (torch.arange(TOKENS) < lengths[:, None])[:, None, None].expand(BATCH, 1, TOKENS, TOKENS)


def reference(inputs: list[Tensor], where: Tensor | None, grad: Tensor, scaling: float) -> list[Tensor]:
    """The output, (batch, tokens, heads, size), and the gradients, in float64 and by autograd."""
    q, k, v = (each.detach().double().requires_grad_() for each in inputs)
    groups = q.shape[1] // k.shape[1]
    scores = scaling * q @ k.repeat_interleave(groups, 1).transpose(2, 3)
    if where is not None:
        scores = scores.masked_fill(~where, -torch.inf)
    out = (scores.softmax(dim=-1) @ v.repeat_interleave(groups, 1)).transpose(1, 2)
    out.backward(grad.double())
    return [out.detach(), *(each.grad for each in (q, k, v) if each.grad is not None)]


@pytest.fixture
def pytorchs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of PyTorch's own attention."""
    called: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        called.append(args)
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    return called


CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]


@pytest.mark.parametrize("at_once", [2**21, 1000, 1])
@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize(
    ("mask", "causal", "where"),
    [
        pytest.param(None, False, None, id="everywhere"),
        pytest.param(padding(), False, padding(), id="padding"),
        pytest.param(padding()[:, :, :1], False, padding(), id="one row of the mask for all queries"),
        pytest.param(CAUSAL, False, CAUSAL, id="one mask for all texts"),
        pytest.param(None, True, CAUSAL, id="causal"),
        pytest.param(padding() & CAUSAL, True, padding() & CAUSAL, id="causal with a mask"),
    ],
)
def test_output_and_gradients_are_those_of_float64(
    mask: Tensor | None,
    causal: bool,
    where: Tensor | None,
    groups: int,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
    pytorchs: list[Any],
) -> None:
    monkeypatch.setattr(bfloat16_attention, "SCORES_AT_ONCE", at_once)
    inputs = qkv(groups)
    grad = torch.randn(BATCH, TOKENS, HEADS, SIZE).to(torch.bfloat16)
    y, weights = cpu_attention_forward(layer(groups, causal=causal), *inputs, mask, scaling=0.3)
    y.backward(grad)
    assert weights is None
    assert y.is_contiguous()
    assert not pytorchs
    for ours, theirs in zip([y.detach(), *(x.grad for x in inputs)], reference(inputs, where, grad, 0.3), strict=True):
        assert ours is not None
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).norm() <= ROUNDING * theirs.norm()


def test_a_text_of_padding_alone_gives_no_nan() -> None:
    inputs = qkv()
    mask = padding().clone()
    mask[2] = False
    y, _ = cpu_attention_forward(layer(), *inputs, mask)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


def test_float32_under_autocast_is_computed_in_bfloat16_and_gets_float32_gradients(pytorchs: list[Any]) -> None:
    """As rotary embeddings and bitsandbytes' layers leave queries and keys."""
    inputs = qkv(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = cpu_attention_forward(layer(), *inputs, padding())
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert not pytorchs
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in inputs)


def test_no_weights_are_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    inputs = qkv(tokens=64)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):  # type: ignore[func-returns-value]
        cpu_attention_forward(layer(), *inputs, None)
    assert max(kept) <= inputs[0].numel()


@pytest.mark.parametrize(
    "reason", ["long texts", "no gradients", "float32", "a bias", "a cache", "a mask for each head"]
)
def test_what_it_does_not_know_goes_pytorchs_way(reason: str, pytorchs: list[Any]) -> None:
    inputs = qkv(tokens=129 if reason == "long texts" else TOKENS)
    mask: Tensor | None = None
    bias = torch.zeros(1, HEADS, TOKENS, TOKENS, dtype=torch.bfloat16)
    options = {"position_bias": bias} if reason == "a bias" else {}
    if reason == "float32":
        inputs = qkv(dtype=torch.float32)
    if reason == "a cache":
        inputs[0] = inputs[0][:, :, -1:]
    if reason == "a mask for each head":
        mask = padding().expand(BATCH, HEADS, TOKENS, TOKENS)
    with torch.set_grad_enabled(reason != "no gradients"):
        cpu_attention_forward(layer(), *inputs, mask, **options)  # type: ignore[arg-type]
    assert len(pytorchs) == 1


def test_without_values_it_has_shapes_alone() -> None:
    with FakeTensorMode():
        inputs = [torch.empty(4000, HEADS, 60, SIZE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        y, _ = cpu_attention_forward(layer(), *inputs, None)
        y.sum().backward()
    assert [x.grad.shape for x in inputs if x.grad is not None] == 3 * [(4000, HEADS, 60, SIZE)]
