"""Frozen weights that are cast once: the same result bit for bit, and never that of other weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.kept_casts import (
    KEPT,
    FrozenLinear,
    cast_weight,
    forget_casts,
    keep_casts_of_linear_layers,
    keep_no_casts,
)
from lora_lightning.tasks.planted_rank import PlantedRankTask
from tests.conftest import TinyClassifier

BF16 = torch.bfloat16


def frozen() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)).requires_grad_(requires_grad=False)


def under_autocast(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the input."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=BF16):
        y = model(x)
    y.float().square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def kept(model: nn.Module) -> int:
    return sum(KEPT in module.__dict__ for module in model.modules())


def test_results_are_those_of_autocast_bit_for_bit() -> None:
    plain, x = frozen(), torch.randn(7, 6)
    ours = copy.deepcopy(plain)
    keep_casts_of_linear_layers(ours)
    for _ in range(2):
        for theirs, found in zip(under_autocast(plain, x), under_autocast(ours, x), strict=True):
            assert torch.equal(theirs, found)
            assert theirs.dtype == found.dtype
    assert kept(ours) == 2
    assert torch.equal(plain(x), ours(x))  # without autocast in float32
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_a_weight_is_cast_once() -> None:
    layer = FrozenLinear(6, 5).requires_grad_(requires_grad=False)
    assert cast_weight(layer, BF16) is cast_weight(layer, BF16)
    assert cast_weight(layer, torch.float16).dtype == torch.float16
    assert cast_weight(layer, torch.float32) is layer.weight


@pytest.mark.parametrize("change", ["in place", "another tensor", "loaded"])
def test_another_weight_is_cast_again(change: str) -> None:
    layer = FrozenLinear(6, 5).requires_grad_(requires_grad=False)
    cast_weight(layer, BF16)
    with torch.no_grad():
        if change == "in place":
            layer.weight.mul_(2)
        elif change == "another tensor":
            layer.weight.data = torch.randn(5, 6)
        else:
            layer.load_state_dict({"weight": torch.ones(5, 6), "bias": torch.ones(5)})
    assert torch.equal(cast_weight(layer, BF16), layer.weight.to(BF16))


def test_nothing_is_kept_while_evaluating_or_sharded_or_of_weights_that_train() -> None:
    evaluated, sharded, trained = (frozen() for _ in range(3))
    keep_no_casts(sharded)
    for model in (evaluated.eval(), sharded):
        keep_casts_of_linear_layers(model)
        under_autocast(model, torch.randn(7, 6))
        assert kept(model) == 0
    trained.requires_grad_()
    keep_casts_of_linear_layers(trained)
    assert not any(type(module) is FrozenLinear for module in trained)
    weight = cast_weight(trained[0], BF16)
    weight.sum().backward()
    assert trained[0].weight.grad is not None


def test_adapted_layers_are_as_before(tiny_classifier: TinyClassifier) -> None:
    loaded = tiny_classifier("bert")
    network = attach_lora(
        loaded.model, LoraSettings(r=2, target_modules="attention-qv"), loaded.lacked, "SEQ_CLS"
    ).train()
    batch = {"input_ids": torch.randint(5, 100, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.int64)}

    def logits() -> Tensor:
        torch.manual_seed(1)  # dropout
        with torch.autocast("cpu", dtype=BF16):
            found: Tensor = network(**batch).logits
        return found

    expected = logits()
    keep_casts_of_linear_layers(network)
    assert torch.equal(logits(), expected)
    assert torch.equal(logits(), expected)
    assert kept(network) > 0
    forget_casts(network)
    assert kept(network) == 0


def test_a_task_forgets_when_training_stops() -> None:
    task = PlantedRankTask()
    task.network = frozen()
    keep_casts_of_linear_layers(task.train())
    under_autocast(task.network, torch.randn(7, 6))
    assert kept(task) == 2
    task.eval()
    assert kept(task) == 0
