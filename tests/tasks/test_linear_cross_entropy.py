"""The cross entropy of a linear head in parts: a NumPy reference, all gradients, and how many logits are held."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from numpy.typing import NDArray
from torch import Tensor

from lora_lightning.compat.fake_tensors import FakeTensorMode
from lora_lightning.tasks import linear_cross_entropy as module
from lora_lightning.tasks.linear_cross_entropy import linear_cross_entropy

ROWS, FEATURES, CLASSES = 23, 7, 40
FACTOR = 0.37  # of the loss, as one over the number of labels


def inputs(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, FEATURES, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(CLASSES, FEATURES, generator=generator).to(dtype).requires_grad_()
    offset = torch.randn(CLASSES, generator=generator).to(dtype).requires_grad_() if bias else None
    return hidden, weight, offset, torch.randint(CLASSES, (ROWS,), generator=generator)


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> list[NDArray[np.float64]]:
    """The loss, and the gradients of hidden states, weights and bias."""
    h, w = (each.detach().double().numpy() for each in (hidden, weight))
    logits = h @ w.T + (0 if bias is None else bias.detach().double().numpy())
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    places = np.arange(len(h)), labels.numpy()
    loss = -np.log(shares[places]).sum()
    shares[places] -= 1
    return [np.asarray(loss), FACTOR * shares @ w, FACTOR * shares.T @ h, FACTOR * shares.sum(axis=0)]


def in_parts(monkeypatch: pytest.MonkeyPatch, rows: int, cached: int) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", rows)
    monkeypatch.setattr(module, "FEWEST_ROWS", 1)
    monkeypatch.setattr(module, "CACHED", cached * CLASSES)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "cached"), [(ROWS, ROWS), (512, 1), (8, 3), (1, 1)])
def test_loss_and_gradients_are_those_of_numpy(
    rows: int, cached: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts(monkeypatch, rows, cached)
    given = inputs(bias=bias)
    loss = linear_cross_entropy(*given)
    (loss * FACTOR).backward()
    found = [loss.detach(), *(each.grad for each in given[:3] if each is not None and each.grad is not None)]
    expected = reference(*given)
    assert len(found) == 3 + bias
    for ours, theirs in zip(found, expected, strict=False):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_far_from_the_truth_as_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch, 8, 3)
    given = inputs(torch.bfloat16)
    loss = linear_cross_entropy(*given)
    (loss * FACTOR).backward()
    assert loss.dtype == torch.float32
    for ours, theirs in zip([loss.detach(), *(each.grad for each in given[:3])], reference(*given), strict=True):  # type: ignore[union-attr]
        size = np.linalg.norm(theirs)
        assert np.linalg.norm(ours.double().numpy() - theirs) <= 2**-7 * size  # type: ignore[union-attr]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_sums_are_float32_where_lightning_makes_16_bits_the_default(
    precision: Literal["bf16-true", "16-true"], dtype: torch.dtype, on_cpu: bool
) -> None:
    outside, inside = inputs(dtype), inputs(dtype)
    expected = linear_cross_entropy(*outside)
    with HalfPrecision(precision).train_step_context():
        loss = linear_cross_entropy(*inside, on_cpu=on_cpu)
    assert (loss.dtype, loss.item()) == (torch.float32, expected.item())
    expected.backward()
    loss.backward()
    for ours, theirs in zip(inside[:3], outside[:3], strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[union-attr, arg-type]


def test_logits_of_any_size_give_finite_losses() -> None:
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[3e4], [-3e4]])
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(6e4)
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([0, -6e4])


def test_only_what_trains_gets_a_gradient() -> None:
    hidden, weight, bias, labels = inputs()
    assert bias is not None
    weight.requires_grad_(requires_grad=False)
    linear_cross_entropy(hidden, weight, bias, labels).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert bias.grad is not None


def test_no_label_at_all_is_no_loss() -> None:
    hidden = torch.zeros(0, FEATURES, requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.ones(CLASSES, FEATURES), None, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


def test_a_second_derivative_is_refused() -> None:
    hidden, *rest = inputs()
    (first,) = torch.autograd.grad(linear_cross_entropy(hidden, *rest), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_few_logits_are_held_and_none_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch, 4, 2)
    largest: list[int] = []
    mm = torch.mm

    def watched(*args: Any, out: Tensor) -> Tensor:
        largest.append(out.numel())
        return mm(*args, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    kept: list[int] = []
    hidden, weight, *rest = inputs()
    weight.requires_grad_(requires_grad=False)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):  # type: ignore[func-returns-value]
        linear_cross_entropy(hidden, weight, *rest)
    assert max(largest) == 4 * CLASSES
    assert max(kept) <= hidden.numel()


def test_without_values_one_block_stands_for_all() -> None:
    with FakeTensorMode():
        hidden = torch.empty(100_000, 8, requires_grad=True)
        loss = linear_cross_entropy(hidden, torch.empty(50_000, 8), None, torch.zeros(100_000, dtype=torch.int64))
        loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (100_000, 8)
