"""AdaLoRA's part in a training loop: its budget, its loss, and what a resumed run needs.

Source: Zhang et al. 2023 (arXiv 2303.10512). The importance of each direction and the choice of what goes are PEFT's.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn

from lora_lightning.compat.peft import rank_allocator
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import AdaLoraSettings
from lora_lightning.lora.delta import ADAPTER, adapted_layers, adapter_factors

SMOOTHED = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # PEFT's names of the importances


def check_budget(settings: AdaLoraSettings, total_steps: float) -> int:
    """Refuses a schedule that leaves no step in which ranks could go.

    Args:
        settings: AdaLoRA's.
        total_steps: Optimizer steps of the whole run; infinity where the trainer sets no end.

    Returns:
        The steps.

    Raises:
        ConfigurationError: If `tinit + tfinal` takes all of them, or there is no end.
    """
    if total_steps == float("inf"):
        msg = "AdaLoRA needs to know how long training takes; set trainer.max_epochs or trainer.max_steps."
        raise ConfigurationError(msg)
    if settings.tinit + settings.tfinal >= total_steps:
        msg = (
            f"model.lora.adalora has tinit {settings.tinit} and tfinal {settings.tfinal}, together "
            f"{settings.tinit + settings.tfinal}, but training takes {round(total_steps)} optimizer steps, which "
            "leaves none to lower the ranks in; lower them or train longer."
        )
        raise ConfigurationError(msg)
    return round(total_steps)


def start_budget(network: PeftModel, total_steps: int) -> None:
    """Tells PEFT how long training takes."""
    _config(network).total_step = total_steps


def allocate_ranks(network: PeftModel, step: int) -> None:
    """Updates the importances and, where that is due, sets the least important directions to 0.

    Args:
        network: With AdaLoRA; the gradients of this step are still there.
        step: Optimizer steps done, this one included, so that the last one can settle the ranks.
    """
    cast("Any", network.base_model).update_and_allocate(step)


def ranks_are_settled(network: PeftModel, step: int) -> bool:
    """Whether the ranks are what AdaLoRA ends with.

    Before, the optimizer's momentum brings directions back that were set to 0, until the next choice.

    Args:
        network: With AdaLoRA.
        step: Optimizer steps done.

    Returns:
        True in the last `tfinal` steps.
    """
    config = _config(network)
    return step >= cast("int", config.total_step) - config.tfinal


def ranks_in_use(network: nn.Module) -> dict[str, int]:
    """The rank of each adapter: under AdaLoRA the directions that it last chose (all before it starts to), r elsewhere.

    Args:
        network: Holds the adapters.

    Returns:
        By the layer's name in the pretrained model.
    """
    model = next((module for module in network.modules() if isinstance(module, PeftModel)), None)
    chosen = (_config(model).rank_pattern or {}) if model is not None else {}
    ranks = {}
    for name, layer in adapted_layers(network).items():
        kept = chosen.get(f"{name}.lora_E.{ADAPTER}", [True] * adapter_factors(layer)[0].shape[0])
        ranks[name] = sum(kept)
    return ranks


def orthogonality(network: nn.Module) -> Tensor:
    """How far the rows of A and the columns of B are from orthonormal: the mean of ||A A^T - I|| and ||B^T B - I||.

    Source: Zhang et al. 2023, equation 4, as PEFT has it: Frobenius norms, not squared, and their mean.

    Args:
        network: With AdaLoRA.

    Returns:
        Scalar, differentiable, at least 0.
    """
    norms = []
    for layer in adapted_layers(network).values():
        a, b = adapter_factors(layer)
        norms += [torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)) for gram in (a @ a.T, b.T @ b)]
    return torch.stack(norms).mean()


def add_orthogonality_gradient(network: nn.Module, weight: float) -> Tensor:
    """Adds the gradient of `weight * orthogonality` to those that the task's loss left.

    It is the gradient of the sum of both losses, whatever the task's was divided by, and once an optimizer step.

    Args:
        network: With AdaLoRA.
        weight: `orth_reg_weight`.

    Returns:
        The orthogonality, detached.
    """
    factors = [factor for layer in adapted_layers(network).values() for factor in adapter_factors(layer)]
    with torch.enable_grad():
        value = orthogonality(network)
        gradients = torch.autograd.grad(weight * value, factors)
    for factor, gradient in zip(factors, gradients, strict=True):
        factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)
    return value.detach()


def budget_state(network: PeftModel) -> dict[str, Any]:
    """What a resumed run needs beside the weights: importances and the choice of ranks."""
    allocator = rank_allocator(network)
    pattern = _config(network).rank_pattern
    return {**{name: dict(getattr(allocator, name)) for name in SMOOTHED}, "rank_pattern": pattern}


def load_budget_state(network: PeftModel, state: Mapping[str, Any]) -> None:
    """Takes up what `budget_state` left.

    Args:
        network: With AdaLoRA.
        state: From a checkpoint.
    """
    allocator = rank_allocator(network)
    parameters = dict(network.get_base_model().named_parameters())
    for name in SMOOTHED:
        setattr(allocator, name, {key: value.to(parameters[key].device) for key, value in state[name].items()})
    _config(network).rank_pattern = state["rank_pattern"]


def _config(network: PeftModel) -> AdaLoraConfig:
    return cast("AdaLoraConfig", network.peft_config[ADAPTER])
