"""AdaLoRA: adapters that start above the target rank and lose their least important directions while they train.

Source: Zhang et al. 2023 (arXiv 2303.10512). The importance of each direction and the choice of what goes are PEFT's.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn

from lora_lightning.compat.peft import AdaLoraLayer, LoraLayer, rank_allocator
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.lora.delta import adapted_layers, adapter_factors, layer_delta
from lora_lightning.lora.parameter_names import ADAPTER, adalora_rank_key
from lora_lightning.lora.variants.variant import LARGEST_FLOAT32, TrainingFacts, Variant

SMOOTHED = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # PEFT's names of the importances


@dataclass
class AdaLoraSettings:
    """Budget of AdaLoRA: adapters start with rank `init_r`; the least important ranks are removed (arXiv 2303.10512).

    Args:
        target_r: Average rank of the adapters at the end.
        init_r: Rank of each adapter at the start, above `target_r`.
        tinit: Optimizer steps before the first rank is removed.
        tfinal: Optimizer steps at the end, in which the ranks do not change.
        deltaT: Optimizer steps from one allocation to the next.
        beta1: Smoothing of the sensitivity of each weight, in (0, 1).
        beta2: Smoothing of its uncertainty, in (0, 1).
        orth_reg_weight: Weight of the loss that keeps the rows of A, and the columns of B, orthonormal.
    """

    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1  # noqa: N815  # PEFT's word
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5

    def __post_init__(self) -> None:
        """Rejects a budget that cannot shrink.

        Raises:
            ConfigurationError: If a value is out of its range.
        """
        if not 1 <= self.target_r < self.init_r:
            msg = (
                f"model.lora.adalora has target_r {self.target_r} and init_r {self.init_r}, but AdaLoRA starts above "
                "its target: 1 <= target_r < init_r, for example 8 and 12."
            )
            raise ConfigurationError(msg)
        for name, least in (("tinit", 0), ("tfinal", 0), ("deltaT", 1), ("orth_reg_weight", 0)):
            if not least <= getattr(self, name) < LARGEST_FLOAT32:
                value = getattr(self, name)
                msg = f"model.lora.adalora.{name} is {value}, but it must be at least {least}, and finite."
                raise ConfigurationError(msg)
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                msg = f"model.lora.adalora.{name} is {getattr(self, name)}, but it must be between 0 and 1."
                raise ConfigurationError(msg)


class AdaLora(Variant):
    """AdaLoRA's part in a run: its budget, its regularization, its choice of ranks, and what a resumed run needs."""

    option = "model.lora.adalora"
    excludes: ClassVar[Mapping[str, str]] = {
        "model.lora.use_dora": "AdaLoRA has no magnitudes; choose one of the two",
        "model.lora.use_rslora": "AdaLoRA scales by its own count of ranks; leave use_rslora out",
        "model.lora.init_lora_weights": "AdaLoRA has an initialization of its own; leave init_lora_weights out",
        "model.lora.rank_pattern": "AdaLoRA chooses the ranks itself; leave rank_pattern out",
        "model.lora.alpha_pattern": "AdaLoRA has one lora_alpha for all layers; leave alpha_pattern out",
        "model.lora.r": "AdaLoRA takes its ranks from adalora.init_r and adalora.target_r; leave r at 8",
        "model.optimization.lorafa": (
            "AdaLoRA ranks directions by the gradients of A, which LoRA-FA freezes; choose one of the two"
        ),
    }
    why_not_sharded = "AdaLoRA ranks the directions of full matrices"
    chooses_ranks = True
    state_key = "adalora"
    config_class = AdaLoraConfig
    value: AdaLoraSettings

    def __init__(self, value: Any = None) -> None:
        super().__init__(value)
        self._loss_scale: Callable[[], float] = lambda: 1.0  # of the training
        self._scale_before_step = 1.0

    @property
    def initial_rank(self) -> tuple[str, int]:
        """`adalora.init_r`."""
        return "adalora.init_r", self.value.init_r

    def check_schedule(self, total_steps: Callable[[], float]) -> None:
        """Refuses a schedule that leaves no step in which ranks could go."""
        steps, tinit, tfinal = total_steps(), self.value.tinit, self.value.tfinal
        if steps == float("inf"):
            msg = "AdaLoRA needs to know how long training takes; set trainer.max_epochs or trainer.max_steps."
            raise ConfigurationError(msg)
        if tinit + tfinal >= steps:
            msg = (
                f"model.lora.adalora has tinit {tinit} and tfinal {tfinal}, together {tinit + tfinal}, but training "
                f"takes {round(steps)} optimizer steps, which leaves none to lower the ranks in; lower them or train "
                "longer."
            )
            raise ConfigurationError(msg)

    def peft_arguments(self) -> dict[str, Any]:
        """The budget; PEFT's `rank_pattern` is where AdaLoRA keeps its choice."""
        budget = asdict(self.value)
        # How long training takes is known once the data is there: `before_training` sets it.
        return {"total_step": budget["tinit"] + budget["tfinal"] + 1, "rank_pattern": None, **budget}

    def after_attaching(self, network: PeftModel) -> None:
        """Freezes the counts of ranks: PEFT's cast of the factors to float32 makes them trainable (0.21.2)."""
        for layer in adapted_layers(network).values():
            cast("AdaLoraLayer", layer).ranknum[ADAPTER].requires_grad_(False)  # noqa: FBT003

    def before_training(self, network: PeftModel, training: TrainingFacts) -> None:
        """Tells PEFT how long training takes."""
        _config(network).total_step = round(training.total_steps())
        self._loss_scale = training.loss_scale

    def before_step(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Adds the gradient of the orthogonality."""
        self._scale_before_step = self._loss_scale()
        return {"train/orthogonality": add_orthogonality_gradient(network, self.value.orth_reg_weight)}

    def after_step(self, network: PeftModel, step: int) -> None:
        """Updates the importances and, if that is due, sets the least important directions to 0.

        A step that was skipped, because its gradients are infinite, says nothing about importance.
        """
        if self.is_settled(network, step):  # gradients do not matter any more, but every step may have been skipped
            nothing_to_do = not rank_allocator(network).ipt and not _config(network).rank_pattern
        else:
            nothing_to_do = self._loss_scale() < self._scale_before_step
        if nothing_to_do:
            return
        cast("Any", network.base_model).update_and_allocate(step)

    def is_settled(self, network: PeftModel, step: int) -> bool:
        """Whether the ranks are final, as they are in the last `tfinal` steps.

        Before, the optimizer's momentum brings directions back that were set to 0, until the next choice.
        """
        config = _config(network)
        return step >= cast("int", config.total_step) - config.tfinal

    def state(self, network: PeftModel) -> dict[str, Any]:
        """Importances, and the directions in use."""
        allocator = rank_allocator(network)
        pattern = _config(network).rank_pattern
        return {**{name: dict(getattr(allocator, name)) for name in SMOOTHED}, "rank_pattern": pattern}

    def load_state(self, network: PeftModel, state: Mapping[str, Any]) -> None:
        """Restores the importances on the devices of their parameters, and the directions in use."""
        allocator = rank_allocator(network)
        parameters = dict(network.get_base_model().named_parameters())
        _check_saved_state(state, parameters)
        for name in SMOOTHED:
            setattr(allocator, name, {key: value.to(parameters[key].device) for key, value in state[name].items()})
        _config(network).rank_pattern = state["rank_pattern"]

    @classmethod
    def has_made(cls, layer: LoraLayer) -> bool:
        """Whether it is PEFT's layer of AdaLoRA."""
        return isinstance(layer, AdaLoraLayer)

    @classmethod
    def needs_conversion(cls, network: PeftModel) -> bool:
        """Whether AdaLoRA made the network's adapters."""
        return any(cls.has_made(layer) for layer in adapted_layers(network).values())

    @classmethod
    def exported_factors(cls, module: str, layer: LoraLayer) -> tuple[Tensor, Tensor, float]:
        """The directions in use alone, those with E != 0; one of zeros if none is."""
        delta = layer_delta(module, layer)
        kept = cast("AdaLoraLayer", layer).lora_E[ADAPTER].detach().flatten() != 0
        if not kept.any():
            kept[0] = True
        return delta.A[kept], delta.B[:, kept], delta.scaling


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
        kept = chosen.get(adalora_rank_key(name), [True] * adapter_factors(layer)[0].shape[0])
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
    """Adds the gradient of `weight * orthogonality` to the gradients of the task's loss.

    The result is the gradient of the sum of both losses, once an optimizer step, whatever the task's loss was divided
    by.

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


def _config(network: PeftModel) -> AdaLoraConfig:
    return cast("AdaLoraConfig", network.peft_config[ADAPTER])


def _check_saved_state(state: Any, parameters: Mapping[str, Tensor]) -> None:
    """Refuses importances that are not of these parameters, and directions that are no masks."""
    wrong = [] if isinstance(state, Mapping) else ["its type"]
    for name in SMOOTHED if not wrong else ():
        values = state.get(name)
        if not isinstance(values, Mapping):
            wrong.append(name)
            continue
        wrong += [f"{name} of {key}" for key, value in values.items() if not _is_importance(value, parameters.get(key))]
    pattern = {} if wrong else state.get("rank_pattern") or {}
    masks = pattern.values() if isinstance(pattern, Mapping) else [None]
    if not all(isinstance(mask, list) and all(type(entry) is bool for entry in mask) for mask in masks):
        wrong.append("rank_pattern")
    if wrong:
        msg = f"the checkpoint's state of AdaLoRA does not fit this model, {wrong[0]} first; use another of the run."
        raise CheckpointError(msg)


def _is_importance(value: Any, parameter: Tensor | None) -> bool:
    is_right = isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape
    return is_right and value.is_floating_point() and bool(value.isfinite().all())
