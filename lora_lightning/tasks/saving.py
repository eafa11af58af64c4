"""The save contract: a checkpoint holds the trainable parameters and all of each adapter, but not the frozen base."""

from collections.abc import Mapping
from contextvars import ContextVar
from functools import cached_property
from typing import Any, Self, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lightning.backbones.base_identity import BaseIdentity, identify_base
from lora_lightning.backbones.saved_base import BASE_MODEL, check_base
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.parameter_names import TASK_PREFIX, is_adapter_parameter
from lora_lightning.lora.variants.variant import Variant
from lora_lightning.runs.checkpoint import check_state, trainable_state
from lora_lightning.runs.settings import to_plain_values
from lora_lightning.tasks.contract import TaskContract
from lora_lightning.tasks.hyperparameters import hyperparameter_conflicts, with_later_options

LOADS_CHECKPOINT = ContextVar("loads_checkpoint", default=False)  # whether a task that is made now gets a checkpoint


class SavedTask(TaskContract):
    """A model with or without adapters, and how it gets into a checkpoint and out of it.

    Attributes:
        network: The model, `None` until `configure_model` builds it.
        variants: The variants of LoRA that its adapters have.
        resumes: Whether the adapters come, or came, from a checkpoint.
        allows_other_base: Whether a checkpoint may have been trained on another base model.
    """

    backbone: str
    lora: LoraSettings | None
    quantization: QuantizationSettings | None
    freeze_backbone: bool

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module | None = None
        self.variants: list[Variant] = []
        # Set by whoever resumes a run, before it starts: its adapters have had their start from base or data.
        self.resumes = LOADS_CHECKPOINT.get()
        self.allows_other_base = False

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """As in Lightning, which builds the model before it loads the checkpoint, so that it cannot tell by itself.

        Args:
            args: As in `LightningModule.load_from_checkpoint`.
            kwargs: As there.

        Returns:
            The task; nothing that only new adapters start from, such as the folder in `model.adapter`, is needed.
        """
        token = LOADS_CHECKPOINT.set(True)
        try:
            return super().load_from_checkpoint(*args, **kwargs)
        finally:
            LOADS_CHECKPOINT.reset(token)

    def save_task_hyperparameters(self, **hyperparameters: Any) -> None:
        """Saves the task's arguments in every checkpoint, as plain values that load without pickle.

        Args:
            hyperparameters: The arguments of `__init__`, by name.
        """
        self.save_hyperparameters({name: to_plain_values(value) for name, value in hyperparameters.items()})

    @property
    def built_network(self) -> nn.Module:
        """The model, once it is built.

        Raises:
            ConfigurationError: If `configure_model` has not run yet.
        """
        if self.network is None:
            msg = "the model is not built yet; call configure_model() first, as a Trainer does."
            raise ConfigurationError(msg)
        return self.network

    @property
    def adapted_network(self) -> PeftModel:
        """The model, adapters in place."""
        return cast("PeftModel", self.built_network)

    @property
    def transformers_model(self) -> PreTrainedModel:
        """The transformers model, adapters in place."""
        network = self.built_network
        return cast("PreTrainedModel", network.get_base_model() if isinstance(network, PeftModel) else network)

    @cached_property
    def base_identity(self) -> BaseIdentity | None:
        """The content of the base model's files; `None` for a task that makes its base itself."""
        return identify_base(self.backbone)

    @property
    def base_is_frozen(self) -> bool:
        """Whether weights of the base model are used as they are, so that a checkpoint does not hold them."""
        return self.lora is not None or self.freeze_backbone

    def freeze_parameters_of_variants(self) -> None:
        """Freezes the parameters of the adapters that their variants do not train."""
        for variant in self.variants:
            variant.freeze_parameters(self.adapted_network)

    def saved_names(self) -> list[str]:
        """Names of the tensors that a checkpoint must hold.

        Returns:
            The trainable parameters, all of each adapter, the buffers of its variants, and the task's own buffers.
        """
        parameters = self.named_parameters()
        names = [name for name, parameter in parameters if parameter.requires_grad or is_adapter_parameter(name)]
        for variant in self.variants:
            names += [f"{TASK_PREFIX}{name}" for name in variant.saved_buffers(self.built_network)]
        return names + [name for name, _ in self.named_buffers(recurse=False)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen base out, and proves that nothing trainable is left out with it."""
        checkpoint["state_dict"] = trainable_state(checkpoint["state_dict"], self.saved_names())
        if self.base_identity is not None:
            checkpoint[BASE_MODEL] = self.base_identity.as_dict()
        for variant in self.variants:
            if variant.state_key:
                checkpoint[variant.state_key] = variant.state(self.adapted_network)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another backbone or adapter before its tensors are loaded."""
        saved = checkpoint.get("hyper_parameters", {})
        known = BASE_MODEL in checkpoint and check_base(
            checkpoint,
            self.base_identity,
            "the checkpoint",
            is_frozen=self.base_is_frozen,
            allowed=self.allows_other_base,
        )
        saved = with_later_options(saved, self.hparams, type(self))
        conflicts = hyperparameter_conflicts(saved, dict(self.hparams), structural_only=True, compare_base=not known)
        if conflicts:
            msg = f"the checkpoint was made with another model: {'; '.join(conflicts)}."
            raise CheckpointError(msg)
        for variant in self.variants if self.network is not None else []:
            if variant.state_key in checkpoint:
                variant.load_state(self.adapted_network, checkpoint[variant.state_key])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads the saved tensors and proves that all of them are there; the frozen base stays as it is.

        Args:
            state_dict: From `on_save_checkpoint`.
            strict: Ignored: the check is always strict for the tensors that a checkpoint must hold.
            assign: As in `torch.nn.Module.load_state_dict`.

        Returns:
            torch's own report; its missing keys are the frozen base.

        Raises:
            CheckpointError: If a tensor is missing, unknown or of another shape.
        """
        del strict
        self.resumes = True
        of_network = _without_prefix(state_dict)
        for variant in self.variants:
            variant.adopt_shapes(self.adapted_network, of_network)
        self.freeze_parameters_of_variants()
        own = self.state_dict()
        check_state(state_dict, {name: own[name] for name in self.saved_names()}, "the checkpoint")
        for variant in self.variants:
            variant.before_loading(self.adapted_network, of_network)
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def _without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's part of a task's state, by its names in the network."""
    return {name.removeprefix(TASK_PREFIX): value for name, value in state_dict.items() if name.startswith(TASK_PREFIX)}
