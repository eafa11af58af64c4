"""What decays, how the rate moves, and settings that cannot train."""

import math

import pytest
import torch
from torch import nn

from lora_lightning.errors import ConfigurationError
from lora_lightning.tasks.optimization import (
    OptimizationSettings,
    build_optimizer,
    build_schedule,
    count_trainable_parameters,
    parameter_groups,
)


def rates(settings: OptimizationSettings, steps: int) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2), settings)
    schedule = build_schedule(optimizer, settings, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def reference(schedule: str, step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / (total - warmup)
    return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[schedule]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("share", [0.0, 0.06, 0.5])
def test_schedule_follows_its_formula(schedule: str, share: float) -> None:
    settings = OptimizationSettings(learning_rate=0.3, schedule=schedule, warmup_share=share)  # type: ignore[arg-type]
    expected = [0.3 * reference(schedule, step, 100, round(share * 100)) for step in range(100)]
    assert rates(settings, 100) == pytest.approx(expected, abs=1e-12)


def test_matrices_decay_and_vectors_and_frozen_parameters_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(requires_grad=False)
    matrices, vectors = parameter_groups(model, OptimizationSettings(weight_decay=0.1))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert [id(parameter) for parameter in matrices["params"]] == [id(model[0].weight)]
    assert {id(parameter) for parameter in vectors["params"]} == {
        id(parameter) for parameter in (model[0].bias, model[1].weight, model[1].bias)
    }


def test_decay_shrinks_matrices_only() -> None:
    model = nn.Linear(2, 2)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = build_optimizer(model, OptimizationSettings(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), bias)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"warmup_share": 1.0}, "warmup_share is 1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        OptimizationSettings(**changes)  # type: ignore[arg-type]


def test_a_schedule_without_an_end_is_refused_unless_constant() -> None:
    optimizer = build_optimizer(nn.Linear(1, 1), OptimizationSettings())
    with pytest.raises(ConfigurationError, match=r"max_epochs"):
        build_schedule(optimizer, OptimizationSettings(schedule="linear"), math.inf)
    endless = OptimizationSettings(schedule="constant", warmup_share=0)
    assert set(build_schedule(optimizer, endless, math.inf).get_last_lr()) == {1e-3}


def test_trained_share_counts_numbers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(requires_grad=False)
    assert count_trainable_parameters(model) == (10, 26)
