"""AdamW and a learning-rate schedule, from a short YAML-visible dataclass."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.quantized import parameter_count

SCHEDULES: dict[str, Any] = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


@dataclass
class OptimizationSettings:
    """How the trained parameters move.

    Gradient clipping and accumulation are the trainer's: `trainer.gradient_clip_val`,
    `trainer.accumulate_grad_batches`.

    Args:
        learning_rate: AdamW's, after warm-up. LoRA wants about ten times what full fine-tuning does.
        weight_decay: Decoupled decay of matrices; biases and norms never decay.
        schedule: What follows the warm-up: `linear` or `cosine` down to 0, or `constant`.
        warmup_share: Share of all steps during which the rate rises from 0, in [0, 1).
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_share: float = 0.06

    def __post_init__(self) -> None:
        """Rejects values that cannot train.

        Raises:
            ConfigurationError: If a value is out of its range.
        """
        if not 0 < self.learning_rate < math.inf:
            msg = f"model.optimization.learning_rate is {self.learning_rate}, but it must be above 0, such as 1e-3."
            raise ConfigurationError(msg)
        if not 0 <= self.weight_decay < math.inf:
            msg = f"model.optimization.weight_decay is {self.weight_decay}, but it must be at least 0."
            raise ConfigurationError(msg)
        if not 0 <= self.warmup_share < 1:
            msg = f"model.optimization.warmup_share is {self.warmup_share}, but a share in [0, 1) is needed."
            raise ConfigurationError(msg)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Splits what trains into matrices, which decay, and vectors (biases, norms, magnitudes), which do not.

    Args:
        parameters: All parameters; frozen ones are left out.
        weight_decay: For the matrices.

    Returns:
        AdamW's parameter groups; an empty group is left out.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = (
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, settings: OptimizationSettings, *, mixed_precision: bool = False) -> AdamW:
    """AdamW over what trains, in its fused form where that is possible.

    Args:
        model: Holds the parameters.
        settings: Learning rate and decay.
        mixed_precision: Lightning clips gradients of a mixed-precision run only where the optimizer is not fused.

    Returns:
        The optimizer.
    """
    groups = parameter_groups(model.parameters(), settings.weight_decay)
    on_one_device = len({parameter.device.type for group in groups for parameter in group["params"]}) == 1
    return AdamW(groups, lr=settings.learning_rate, fused=(on_one_device and not mixed_precision) or None)


def build_schedule(optimizer: Optimizer, settings: OptimizationSettings, total_steps: float) -> LRScheduler:
    """The learning rate over a run, to be stepped once an optimizer step.

    Args:
        optimizer: From `build_optimizer`.
        settings: Schedule and warm-up.
        total_steps: Optimizer steps of the whole run; infinity where the trainer sets no end.

    Returns:
        The schedule.

    Raises:
        ConfigurationError: If the schedule needs an end and there is none.
    """
    endless = total_steps == float("inf")
    if endless and (settings.schedule != "constant" or settings.warmup_share):
        msg = (
            "model.optimization needs to know how long training takes, but trainer.max_epochs and trainer.max_steps "
            "set no end; set one of them, or schedule: constant with warmup_share: 0."
        )
        raise ConfigurationError(msg)
    warmup_steps = 0 if endless else round(settings.warmup_share * total_steps)
    if settings.schedule == "constant":
        return cast("LRScheduler", get_constant_schedule_with_warmup(optimizer, warmup_steps))
    return cast("LRScheduler", SCHEDULES[settings.schedule](optimizer, warmup_steps, round(total_steps)))


def trained_share(model: nn.Module) -> tuple[int, int]:
    """Counts parameters.

    Args:
        model: Any module.

    Returns:
        (trained, total) numbers of parameters; a quantised weight counts what it stands for, not its packed elements.
    """
    sizes = [(parameter_count(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
