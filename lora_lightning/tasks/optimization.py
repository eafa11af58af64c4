"""AdamW, its variants for LoRA, and a learning-rate schedule, from a short YAML-visible dataclass."""

import math
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
from lora_lightning.lora.variants import chosen_variants
from lora_lightning.runs.optimizer_state import check_optimizer_state

SCHEDULES: dict[str, Any] = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


@dataclass
class OptimizationSettings:
    """How the trainable parameters are optimized.

    Gradient clipping and accumulation are the trainer's: `trainer.gradient_clip_val`,
    `trainer.accumulate_grad_batches`.

    Args:
        learning_rate: Learning rate of AdamW after warm-up. LoRA needs several times that of full fine-tuning.
        weight_decay: Decoupled weight decay of matrices. It is not applied to biases and norms.
        schedule: What follows the warm-up: `linear` or `cosine` decay to 0, or `constant`.
        warmup_share: Share of all steps during which the rate rises from 0, in [0, 1).
        loraplus_lr_ratio: LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of B, and of all vectors
            (biases, norms, magnitudes), as a multiple of `learning_rate`; `null` for one rate. The paper uses 16, with
            a lower `learning_rate`.
        lorafa: LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A keeps its initial value, and the gradient of B is
            projected so that dW follows the gradient of W as closely as it can.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_share: float = 0.06
    loraplus_lr_ratio: float | None = None
    lorafa: bool = False

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
            msg = f"model.optimization.warmup_share is {self.warmup_share}, but it must be in [0, 1)."
            raise ConfigurationError(msg)
        if self.loraplus_lr_ratio is not None and not self.loraplus_lr_ratio >= 1:
            msg = (
                f"model.optimization.loraplus_lr_ratio is {self.loraplus_lr_ratio}, but it must be at least 1, such as "
                "16, or null."
            )
            raise ConfigurationError(msg)


def parameter_groups(model: nn.Module, settings: OptimizationSettings) -> list[dict[str, Any]]:
    """Splits the trainable parameters into matrices, which decay, and vectors (biases, norms, magnitudes).

    Vectors never decay; PEFT's `create_loraplus_optimizer` lets magnitudes decay too.

    Args:
        model: Holds the parameters; frozen parameters are left out.
        settings: Learning rate, decay, and variants that change the learning rate of some parameters.

    Returns:
        AdamW's parameter groups: matrices before vectors, lower learning rates first.
    """
    variants = chosen_variants(None, settings)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = math.prod(variant.learning_rate_factor(name, parameter) for variant in variants)
            groups.setdefault((parameter.ndim <= 1, factor), []).append(parameter)
    return [
        {
            "params": groups[is_vector, factor],
            "lr": settings.learning_rate * factor,
            "weight_decay": 0.0 if is_vector else settings.weight_decay,
        }
        for is_vector, factor in sorted(groups)
    ]


def build_optimizer(model: nn.Module, settings: OptimizationSettings, *, scales_gradients: bool = False) -> AdamW:
    """AdamW over the trainable parameters, in its fused form if that is possible.

    Args:
        model: Holds the parameters.
        settings: Learning rate, decay, variants.
        scales_gradients: Gradients are scaled, as in float16; they can be clipped only if the optimizer is not fused.

    Returns:
        The optimizer.
    """
    groups = parameter_groups(model, settings)
    on_one_device = len({parameter.device.type for group in groups for parameter in group["params"]}) == 1
    fused = (on_one_device and not scales_gradients) or None
    own_classes = (variant.optimizer_class(model) for variant in chosen_variants(None, settings))
    optimizer_class = next((own for own in own_classes if own is not None), AdamW)
    optimizer = optimizer_class(groups, lr=settings.learning_rate, fused=fused)
    optimizer.register_load_state_dict_pre_hook(check_optimizer_state)
    return optimizer


def build_schedule(optimizer: Optimizer, settings: OptimizationSettings, total_steps: float) -> LRScheduler:
    """The learning rate over a run, to be stepped once an optimizer step.

    Args:
        optimizer: From `build_optimizer`.
        settings: Schedule and warm-up.
        total_steps: Optimizer steps of the whole run; infinity if the trainer sets no end.

    Returns:
        The schedule.

    Raises:
        ConfigurationError: If the schedule needs to know the end of training and the trainer sets none.
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


def count_trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Counts trainable and all parameters.

    Args:
        model: Any module.

    Returns:
        (trainable, total) numbers of parameters; a quantized weight counts as the weight that it stands for, not by its
        packed elements.
    """
    sizes = [(parameter_count(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, is_trainable in sizes if is_trainable), sum(size for size, _ in sizes)
