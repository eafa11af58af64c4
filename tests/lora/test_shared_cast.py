"""One cast for all readers of an activation, and never one of other numbers, another history or a gone tensor."""

import copy
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_lightning.lora import fused
from lora_lightning.lora import shared_cast as module
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.shared_cast import shared_cast

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After each test every activation is gone, so every cast has to be."""
    yield
    assert module._latest.casts == []


def activation() -> Tensor:
    return torch.linspace(-3, 3, 24).view(4, 6)


def test_all_readers_get_the_same_cast() -> None:
    x = activation()
    first = shared_cast(x, HALF)
    assert torch.equal(first, x.to(HALF))
    assert shared_cast(x, HALF) is first


def test_another_activation_of_the_same_numbers_is_cast_anew() -> None:
    x = activation()
    first = shared_cast(x, HALF)
    assert shared_cast(x.view(4, 6), HALF) is not first


def test_another_dtype_is_cast_anew() -> None:
    x = activation()
    assert [shared_cast(x, dtype).dtype for dtype in (HALF, torch.float16)] == [HALF, torch.float16]


def test_a_change_in_place_is_seen() -> None:
    x = activation()
    shared_cast(x, HALF)
    x.mul_(2)
    assert torch.equal(shared_cast(x, HALF), x.to(HALF))


def test_a_change_of_another_tensor_in_the_same_memory_is_seen() -> None:
    x = activation()
    shared_cast(x, HALF)
    x.detach()[0].mul_(2)
    assert torch.equal(shared_cast(x, HALF), x.to(HALF))


def test_a_cast_holds_no_graph() -> None:
    x = activation().requires_grad_() * 1.0
    assert not shared_cast(x, HALF).requires_grad


def test_inference_tensors_are_cast_anew() -> None:
    with torch.inference_mode():
        x = activation()
        first = shared_cast(x, HALF)
        x.mul_(2)
        assert torch.equal(shared_cast(x, HALF), x.to(HALF))
        assert not torch.equal(first, x.to(HALF))
    shared_cast(x, HALF)
    assert module._latest.casts == []


def test_a_cast_of_inference_mode_does_not_reach_training() -> None:
    x = activation()
    with torch.inference_mode():
        shared_cast(x, HALF)
    assert not shared_cast(x, HALF).is_inference()


def test_a_cast_goes_with_its_activation_also_in_another_thread() -> None:
    holder = [activation()]
    cast = weakref.ref(shared_cast(holder[0], HALF))
    assert cast() is not None
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    assert cast() is None


def test_each_thread_has_its_own() -> None:
    x = activation()
    mine = shared_cast(x, HALF)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(shared_cast(x, HALF) is mine))
    thread.start()
    thread.join()
    assert found == [False]
    assert shared_cast(x, HALF) is mine


class Siblings(nn.Module):
    """Query, key and value of one input, as in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(48, 40) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return torch.stack([self.q(h), self.k(h), self.v(h)])


def siblings() -> nn.Module:
    """With B away from zero."""
    torch.manual_seed(0)
    model = get_peft_model(Siblings(), LoraConfig(r=4, lora_alpha=8, target_modules=["q", "k", "v"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and every gradient."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads}  # type: ignore[dict-item]


@pytest.fixture
def casts(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the layers were given."""
    given: list[Tensor] = []

    def noted(x: Tensor, dtype: torch.dtype) -> Tensor:
        given.append(shared_cast(x, dtype))
        return given[-1]

    monkeypatch.setattr(fused, "shared_cast", noted)
    return given


def test_layers_of_one_input_give_the_same_bits_as_with_a_cast_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = siblings()
    fuse_lora_layers(model)
    x = torch.randn(64, 48)
    with torch.autocast("cpu", dtype=HALF):
        shared = results(model, x)
        model.zero_grad()
        monkeypatch.setattr(fused, "shared_cast", lambda x, dtype: x.detach().to(dtype))
        alone = results(model, x)
    assert shared.keys() == alone.keys()
    assert all(torch.equal(shared[name], value) for name, value in alone.items())


def test_layers_of_one_input_round_no_more_than_pefts(casts: list[Tensor]) -> None:
    plain = siblings()
    other = copy.deepcopy(plain)
    assert fuse_lora_layers(other) == 3
    x = torch.randn(64, 48)
    exact = results(copy.deepcopy(plain).double(), x.double())
    with torch.autocast("cpu", dtype=HALF):
        left, right = results(other, x), results(plain, x)
    assert len({id(cast) for cast in casts}) == 1
    assert left.keys() == right.keys() == exact.keys()
    for name, reference in exact.items():
        assert left[name].dtype == right[name].dtype, name
        errors = [float((found[name].double() - reference).norm() / reference.norm()) for found in (left, right)]
        assert errors[0] < 1.1 * errors[1] + 1e-4, name
    casts.clear()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same(reentrant: bool) -> None:
    model = siblings()
    fuse_lora_layers(model)
    inner = model.base_model.model  # type: ignore[union-attr]
    x = torch.randn(8, 48)
    with torch.autocast("cpu", dtype=HALF):
        whole = results(model, x)
        model.zero_grad()
        plain_forward = inner.forward
        inner.forward = lambda x: checkpoint(plain_forward, x, use_reentrant=reentrant)
        again = results(model, x)
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_a_hook_that_changes_the_input_in_place_reaches_the_layers_after_it() -> None:
    model = siblings()
    fuse_lora_layers(model)
    inner = model.base_model.model  # type: ignore[union-attr]
    x = torch.randn(8, 48)
    with torch.autocast("cpu", dtype=HALF):
        before = model(x)
        inner.k.register_forward_pre_hook(lambda _, args: (args[0].mul_(2),))
        after = model(x)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
    assert not torch.equal(after[2], before[2])
