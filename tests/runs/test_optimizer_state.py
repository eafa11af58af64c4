"""A saved optimizer state is checked against the parameters before the optimizer takes it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_lightning.errors import CheckpointError
from lora_lightning.tasks.optimization import OptimizationSettings, build_optimizer

State = dict[str, Any]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"lora_A": nn.Linear(4, 3, bias=False), "lora_B": nn.Linear(3, 5)})


def stepped(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = model()
    optimizer = build_optimizer(network, OptimizationSettings(**settings))
    network["lora_B"](network["lora_A"](torch.ones(2, 4))).sum().backward()  # type: ignore[index]
    optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("settings", [{}, {"loraplus_lr_ratio": 16.0}, {"weight_decay": 0.0}], ids=str)
def test_an_own_state_is_taken(settings: dict[str, Any]) -> None:
    _, former = stepped(**settings)
    optimizer = build_optimizer(model(), OptimizationSettings(**settings))
    optimizer.load_state_dict(copy.deepcopy(former.state_dict()))
    taken, saved = optimizer.state_dict()["state"], former.state_dict()["state"]
    assert taken.keys() == saved.keys()
    assert all(torch.equal(taken[number][name], value) for number in saved for name, value in saved[number].items())


def put(*path: Any, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        place: Any = state
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


FORGERIES: dict[str, tuple[Callable[[State], None], str]] = {
    "larger moment": (
        put("state", 0, "exp_avg", value=torch.ones(300, 400)),
        r"exp_avg of parameter 0 is \(300, 400\)",
    ),
    "smaller moment": (put("state", 1, "exp_avg_sq", value=torch.ones(1)), r"exp_avg_sq of parameter 1 is \(1,\)"),
    "transposed": (
        put("state", 0, "exp_avg", value=torch.ones(4, 3)),
        r"is \(4, 3\), torch.float32, but needs \(3, 4\)",
    ),
    "integers": (put("state", 0, "exp_avg", value=torch.ones(3, 4, dtype=torch.int64)), "torch.int64"),
    "complex": (put("state", 0, "exp_avg", value=torch.ones(3, 4, dtype=torch.complex64)), "torch.complex64"),
    "text": (put("state", 0, "exp_avg", value="x"), "exp_avg of parameter 0 is str"),
    "step with a shape": (put("state", 2, "step", value=torch.ones(7)), r"step of parameter 2 is \(7,\)"),
    "step of integers": (put("state", 2, "step", value=torch.tensor(1)), r"step of parameter 2 is \(\), torch.int64"),
    "step as a number": (put("state", 2, "step", value=1), "step of parameter 2 is int"),
    "missing moment": (lambda state: state["state"][1].pop("exp_avg"), "parameter 1 holds"),
    "unknown moment": (put("state", 1, "max_exp_avg_sq", value=torch.ones(5, 3)), "parameter 1 holds"),
    "unknown parameter": (put("state", 9, value={}), "an entry '9' for no parameter"),
    "negative parameter": (put("state", -1, value={}), "an entry '-1' for no parameter"),
    "list of states": (put("state", value=[]), "has no state and param_groups"),
    "no groups": (put("param_groups", value=[]), "is not of parameter groups of"),
    "repeated parameter": (put("param_groups", 0, "params", value=[0, 0]), "is not of parameter groups of"),
    "longer group": (put("param_groups", 1, "params", value=[2, 3]), "is not of parameter groups of"),
    "amsgrad": (put("param_groups", 0, "amsgrad", value=True), "amsgrad = True in parameter group 0"),
    "capturable": (put("param_groups", 1, "capturable", value=True), "capturable = True in parameter group 1"),
    "maximize": (put("param_groups", 0, "maximize", value=True), "maximize = True"),
    "fused": (put("param_groups", 0, "fused", value="yes"), "fused = yes"),
    "rate": (put("param_groups", 0, "lr", value=float("nan")), "lr = nan"),
    "negative rate": (put("param_groups", 0, "lr", value=-1.0), "lr = -1.0"),
    "one beta": (put("param_groups", 0, "betas", value=(0.9,)), "betas = "),
    "beta of 1": (put("param_groups", 0, "betas", value=(0.9, 1.0)), "betas = "),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_state_is_refused_and_nothing_is_taken(kind: str) -> None:
    change, message = FORGERIES[kind]
    state = copy.deepcopy(stepped()[1].state_dict())
    change(state)
    network = model()
    optimizer = build_optimizer(network, OptimizationSettings())
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict(state)
    assert not optimizer.state


def test_a_state_of_other_groups_is_refused() -> None:
    state = stepped(loraplus_lr_ratio=4.0)[1].state_dict()
    optimizer = build_optimizer(model(), OptimizationSettings())
    with pytest.raises(CheckpointError, match=r"is not of parameter groups of \[2, 1\] parameters"):
        optimizer.load_state_dict(state)


def test_moments_of_another_precision_are_taken_as_torch_converts_them() -> None:
    state = copy.deepcopy(stepped()[1].state_dict())
    moment: Tensor = state["state"][0]["exp_avg"]
    state["state"][0]["exp_avg"] = moment.to(torch.bfloat16)
    network = model()
    optimizer = build_optimizer(network, OptimizationSettings())
    optimizer.load_state_dict(state)
    assert optimizer.state_dict()["state"][0]["exp_avg"].dtype == torch.float32
