"""AdamW, its variants for LoRA, and a learning-rate schedule, from a short YAML-visible dataclass."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lora_lightning.compat.peft import LoraLayer
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.combinations import check_pairs
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import ADAPTER, adapted_layers, adapter_factors
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
        loraplus_lr_ratio: LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B, and all vectors (biases, norms, magnitudes),
            learn so many times faster than the rest; `null` for one rate. 16 is the paper's choice, with a lower
            `learning_rate`.
        lorafa: LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A stays as it is drawn, and B's gradient is projected so
            that dW follows the gradient of W as closely as it can.
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
            msg = f"model.optimization.warmup_share is {self.warmup_share}, but a share in [0, 1) is needed."
            raise ConfigurationError(msg)
        if self.loraplus_lr_ratio is not None and not self.loraplus_lr_ratio >= 1:
            msg = (
                f"model.optimization.loraplus_lr_ratio is {self.loraplus_lr_ratio}, but it must be at least 1, such as "
                "16, or null."
            )
            raise ConfigurationError(msg)


def check_optimizer_variants(settings: OptimizationSettings, lora: LoraSettings | None) -> None:
    """Refuses a variant of the optimizer that the adapter has no use for.

    Args:
        settings: The optimizer's.
        lora: The adapter's; `None` where there is none.

    Raises:
        ConfigurationError: If one is asked for that does not exist there.
    """
    asked = tuple(name for name in ("loraplus_lr_ratio", "lorafa") if getattr(settings, name))
    if lora is None and asked:
        msg = f"model.optimization.{asked[0]} is a variant of LoRA, but model.lora is null; leave it out."
        raise ConfigurationError(msg)
    if lora is not None:
        check_pairs(lora, asked)


def parameter_groups(model: nn.Module, settings: OptimizationSettings) -> list[dict[str, Any]]:
    """Splits what trains into matrices, which decay, and vectors (biases, norms, magnitudes), which do not.

    With LoRA+ the matrices are two groups, and B and the vectors learn faster, as in PEFT's `create_loraplus_optimizer`
    (which also lets magnitudes decay).

    Args:
        model: Holds the parameters; frozen ones are left out.
        settings: Learning rate, decay, ratio.

    Returns:
        AdamW's parameter groups; an empty group is left out.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    vectors = [parameter for _, parameter in named if parameter.ndim <= 1]
    ratio = settings.loraplus_lr_ratio
    fast = [parameter for name, parameter in named if ratio and parameter.ndim > 1 and ".lora_B." in f".{name}"]
    seen = {id(parameter) for parameter in (*vectors, *fast)}
    rest = [parameter for _, parameter in named if id(parameter) not in seen]
    rate, faster = settings.learning_rate, settings.learning_rate * (ratio or 1)
    groups: tuple[dict[str, Any], ...] = (
        {"params": rest, "lr": rate, "weight_decay": settings.weight_decay},
        {"params": fast, "lr": faster, "weight_decay": settings.weight_decay},
        {"params": vectors, "lr": faster, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


class LoraFaAdamW(AdamW):
    """AdamW on the projected gradients of LoRA-FA.

    With A fixed, the change of dW = s B A that is closest to the gradient of W comes from
    g = 1 / s^2 * (dL/dB) (A A^T)^-1 (as in PEFT's `LoraFAOptimizer`, here after clipping too, but in full precision
    and fused).

    Args:
        groups: Parameter groups.
        layers: PEFT's layers, A frozen.
        kwargs: AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], layers: Sequence[LoraLayer], **kwargs: Any) -> None:
        super().__init__(groups, **kwargs)
        self._layers = layers
        self._projections: list[tuple[Tensor, Tensor]] | None = None  # of B; made when A is what it will be

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes a step.

        Args:
            closure: Computes the gradients, as Lightning passes it.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._projections is None:
            self._projections = [projection(layer) for layer in self._layers]
        for b, matrix in self._projections:
            if b.grad is not None:
                b.grad.copy_(b.grad @ matrix)
        super().step()
        return loss


@torch.no_grad()
def projection(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """What the gradient of a layer's B is to be multiplied with under LoRA-FA.

    Source: Zhang et al. 2023 (arXiv 2308.03303), as PEFT has it.

    Args:
        layer: PEFT's.

    Returns:
        B, the parameter, and (A A^T)^-1 / s^2, (r, r), B's dtype and device.
    """
    a, b = adapter_factors(layer)
    gram = (a @ a.T).double()
    inverse = torch.linalg.pinv(gram + 1e-8 * torch.eye(len(gram)).to(gram), hermitian=True)
    return b, (inverse / float(layer.scaling[ADAPTER]) ** 2).to(b)


def build_optimizer(model: nn.Module, settings: OptimizationSettings, *, mixed_precision: bool = False) -> AdamW:
    """AdamW over what trains, in its fused form where that is possible.

    Args:
        model: Holds the parameters.
        settings: Learning rate, decay, variants.
        mixed_precision: Lightning clips gradients of a mixed-precision run only where the optimizer is not fused.

    Returns:
        The optimizer.
    """
    groups = parameter_groups(model, settings)
    on_one_device = len({parameter.device.type for group in groups for parameter in group["params"]}) == 1
    fused = (on_one_device and not mixed_precision) or None
    if settings.lorafa:
        return LoraFaAdamW(groups, list(adapted_layers(model).values()), lr=settings.learning_rate, fused=fused)
    return AdamW(groups, lr=settings.learning_rate, fused=fused)


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


def count_trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Counts parameters.

    Args:
        model: Any module.

    Returns:
        (trained, total) numbers of parameters; a quantised weight counts what it stands for, not its packed elements.
    """
    sizes = [(parameter_count(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
