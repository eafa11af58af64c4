"""Attention with dropout on a CPU: a NumPy reference, derivatives, the mean, and when PyTorch's own is used."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lora_lightning.backbones import attention
from lora_lightning.backbones.attention import cpu_attention_forward, use_cpu_attention
from lora_lightning.lora.dropout import inverted_mask
from tests.conftest import TinyClassifier
from tests.tiny_models import FAMILIES

LAYER = SimpleNamespace(is_causal=False)
BATCH, HEADS, TOKENS, SIZE = 3, 2, 5, 4


def qkv(dtype: torch.dtype = torch.float32, tokens: int = TOKENS) -> list[Tensor]:
    """Queries, keys and values laid out as a linear layer leaves them."""
    torch.manual_seed(0)
    flat = [torch.randn(BATCH, tokens, HEADS * SIZE, dtype=dtype) for _ in range(3)]
    return [x.view(BATCH, tokens, HEADS, SIZE).transpose(1, 2).requires_grad_() for x in flat]


def padding_mask() -> Tensor:
    lengths = torch.tensor([5, 3, 1])
    return (torch.arange(TOKENS) < lengths[:, None])[:, None, None].expand(BATCH, 1, TOKENS, TOKENS)


def numpy_attention(q: Any, k: Any, v: Any, where: Any, drop: NDArray[np.float64], scaling: float) -> Any:
    scores = np.where(where, scaling * q @ k.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return ((weights * drop) @ v).swapaxes(1, 2)


@pytest.mark.parametrize(
    "mask", [None, padding_mask(), torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]]
)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_equals_numpy_with_the_same_elements_dropped(mask: Tensor | None, scaling: float | None) -> None:
    q, k, v = qkv()
    torch.manual_seed(7)
    y, weights = cpu_attention_forward(LAYER, q, k, v, mask, dropout=0.4, scaling=scaling)  # type: ignore[arg-type]
    torch.manual_seed(7)
    drop = inverted_mask(torch.empty(BATCH * HEADS, TOKENS, TOKENS), 0.4).view(BATCH, HEADS, TOKENS, TOKENS)
    where = np.ones((1, 1, 1, 1), dtype=bool) if mask is None else mask.numpy()
    arrays = [x.detach().double().numpy() for x in (q, k, v)]
    expected = numpy_attention(*arrays, where, drop.double().numpy(), scaling or 1 / math.sqrt(SIZE))
    assert weights is None
    assert y.is_contiguous()
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_derivatives_are_those_of_finite_differences() -> None:
    bias = torch.zeros(BATCH, 1, 1, TOKENS, dtype=torch.float64).masked_fill(~padding_mask()[:, :, :1], -1e9)

    def run(*inputs: Tensor) -> Tensor:
        torch.manual_seed(5)  # the same elements at each call
        y: Tensor = attention._DropoutAttention.apply(*inputs, bias, 0.5, 0.3)  # type: ignore[no-untyped-call]
        return y

    assert torch.autograd.gradcheck(run, tuple(qkv(torch.float64)))


def test_one_tensor_of_weights_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    tokens = 64
    q, k, v = qkv(tokens=tokens)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):  # type: ignore[func-returns-value]
        cpu_attention_forward(LAYER, q, k, v, None, dropout=0.3)  # type: ignore[arg-type]
    assert sum(size == BATCH * HEADS * tokens * tokens for size in kept) == 1
    assert sum(kept) < 2 * BATCH * HEADS * tokens * tokens


def test_mean_over_many_draws_is_the_attention_without_dropout() -> None:
    q, k, v = (x.detach() for x in qkv())
    expected, _ = sdpa_attention_forward(LAYER, q, k, v, padding_mask())  # type: ignore[arg-type]
    drawn = torch.stack(
        [cpu_attention_forward(LAYER, q, k, v, padding_mask(), dropout=0.25)[0] for _ in range(4000)]  # type: ignore[arg-type]
    )
    error = (drawn.mean(dim=0) - expected).abs()
    assert (error <= 5 * drawn.std(dim=0) / 4000**0.5 + 1e-6).all()


@pytest.mark.parametrize(
    ("change", "options"),
    [
        pytest.param(lambda x: x, {"dropout": 0.0}, id="no dropout"),
        pytest.param(lambda x: x.double(), {}, id="float64"),
        pytest.param(lambda x: x, {"attention_mask": None, "is_causal": True}, id="causal without a mask"),
        pytest.param(lambda x: x, {"attention_mask": padding_mask().float()}, id="additive mask"),
    ],
)
def test_what_it_does_not_know_goes_pytorchs_way(monkeypatch: pytest.MonkeyPatch, change: Any, options: Any) -> None:
    q, k, v = (change(x) for x in qkv())
    called: list[Any] = []

    def pytorchs(*args: Any, **kwargs: Any) -> Any:
        called.append(args)
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", pytorchs)
    words = {"attention_mask": padding_mask(), "dropout": 0.5, **options}
    y, _ = cpu_attention_forward(LAYER, q, k, v, **words)  # type: ignore[arg-type]
    assert len(called) == 1
    assert y.shape == (BATCH, TOKENS, HEADS, SIZE)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_logits_and_saves_no_trace(tiny_classifier: TinyClassifier, family: str) -> None:
    model = tiny_classifier(family, base_dropout=0.3).model.eval()
    batch = {"input_ids": torch.randint(5, 100, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.int64)}
    batch["attention_mask"][1:, 6:] = 0
    expected = model(**batch).logits
    use_cpu_attention(model)
    torch.testing.assert_close(model(**batch).logits, expected)
    model.train()(**batch).logits.sum().backward()
    assert attention.NAME not in str(model.config.to_dict())


def test_bert_uses_it_while_training(tiny_classifier: TinyClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_classifier("bert", base_dropout=0.3).model.train()
    use_cpu_attention(model)
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    model(input_ids=torch.randint(5, 100, (4, 9)), attention_mask=torch.ones(4, 9, dtype=torch.int64))


@pytest.fixture
def pytorchs(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """In which dtypes PyTorch's own attention was asked."""
    called: list[torch.dtype] = []

    def watched(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        called.append(query.dtype)
        return sdpa_attention_forward(module, query, *args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    return called


@pytest.mark.parametrize(("mask", "causal"), [(None, False), (padding_mask(), False), (None, True)])
@pytest.mark.parametrize("kind", ["bfloat16", "float32 under autocast"])
def test_short_texts_in_bfloat16_train_in_float32(
    mask: Tensor | None, causal: bool, kind: str, pytorchs: list[torch.dtype]
) -> None:
    """Output and gradients are within one rounding of those of float64."""
    layer: Any = SimpleNamespace(is_causal=causal)
    autocast = kind != "bfloat16"
    inputs = [x.detach().bfloat16() for x in qkv()]
    ours = [x.to(torch.float32 if autocast else torch.bfloat16).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y, _ = cpu_attention_forward(layer, *ours, mask)
    expected, _ = sdpa_attention_forward(layer, *exact, mask)
    for out in (y, expected):
        out.backward(torch.linspace(-1, 2, out.numel()).view(out.shape).bfloat16().to(out.dtype))
    assert (y.dtype, pytorchs) == (torch.bfloat16, [torch.float32])
    for found, wanted in zip([y, *(x.grad for x in ours)], [expected, *(x.grad for x in exact)], strict=True):
        assert found is not None
        assert wanted is not None
        assert (found.double() - wanted).norm() <= 2**-8 * wanted.norm()


@pytest.mark.parametrize("reason", ["a long text", "no gradients", "a cache"])
def test_all_else_in_bfloat16_stays_in_it(reason: str, pytorchs: list[torch.dtype]) -> None:
    q, k, v = qkv(torch.bfloat16, tokens=129 if reason == "a long text" else TOKENS)
    with torch.set_grad_enabled(reason != "no gradients"):
        cpu_attention_forward(LAYER, q[:, :, -1:] if reason == "a cache" else q, k, v, None)  # type: ignore[arg-type]
    assert pytorchs == [torch.bfloat16]


def test_sparse_attention_is_left_alone() -> None:
    """Its layers look for the name "sdpa", and leave their selection out under another: the logits would change."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128, "kv_lora_rank": 16}
    sizes |= {"q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "index_topk": 3}
    sizes |= {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    sizes |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 2, "index_n_heads": 2, "index_head_dim": 16}
    config = AutoConfig.for_model("axk2", **sizes, pad_token_id=0, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tokens = torch.arange(3, 23)[None]
    expected = model(input_ids=tokens).logits
    use_cpu_attention(model)
    assert torch.equal(model(input_ids=tokens).logits, expected)


def test_under_autocast_it_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of inputs in float32, as bitsandbytes' layers give them: the backward pass met two dtypes."""
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    inputs = qkv()
    torch.manual_seed(7)
    expected, _ = cpu_attention_forward(LAYER, *inputs, padding_mask(), dropout=0.4)  # type: ignore[arg-type]
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (each.detach().to(dtype).requires_grad_() for each in inputs)
        torch.manual_seed(7)  # the same elements are dropped
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = cpu_attention_forward(LAYER, q, k, v, padding_mask(), dropout=0.4)  # type: ignore[arg-type]
        y.float().sum().backward()
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
        assert all(x.grad is not None and x.grad.dtype == dtype for x in (q, k, v))
