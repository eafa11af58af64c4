"""What a variant of LoRA may do at each moment of a run; by default, what plain LoRA does."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.optim import AdamW

from lora_lightning.compat.peft import LoraLayer
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import layer_delta

LARGEST_FLOAT32 = 3.4e38  # a larger option would be infinite where it is used

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainingFacts:
    """What a variant may use before the first step of a training.

    Attributes:
        resumes: Whether the adapters come from a checkpoint, so that nothing may start from scratch.
        total_steps: Returns the optimizer steps of the whole run; infinity if the trainer sets no end.
        is_main_process: Whether this process is the one that computes what all others receive.
        device: Where this process computes.
        batches: Returns this process's training data, batch by batch, with a length.
        evaluate: Runs the network on a batch.
        isolated: A context in which passes leave the random numbers as they were and compute every position.
        broadcast: Sends every process the main process's value; collective.
        report: Shows the user a line, on the main process only.
        loss_scale: Returns what `16-mixed` multiplies the loss with, 1 in other precisions; an optimizer step that
            lowers it was skipped, because gradients were infinite.
    """

    resumes: bool
    total_steps: Callable[[], float]
    is_main_process: bool
    device: torch.device
    batches: Callable[[], Iterable[Batch]]
    evaluate: Callable[[Batch], Any]
    isolated: Callable[[], AbstractContextManager[None]]
    broadcast: Callable[[Any], Any]
    report: Callable[[str], None]
    loss_scale: Callable[[], float]


class Variant:
    """Plain LoRA. A variant overrides the hooks in which it differs.

    Several variants may be active in one run (DoRA with EVA and LoRA+); each hook is called for all of them, in the
    order of `VARIANTS`. Hooks that export or merge find the variant by the layer, since adapters also come from folders
    that hold no settings of this package.

    Args:
        value: What the user set `option` to.

    Attributes:
        option: The option that chooses the variant, with its full path.
        excludes: Options that may not be set beside this one, with the reason and the remedy.
        refused_bits: Numbers of bits of quantized bases that the variant cannot work on.
        why_not_quantized: The reason for `refused_bits`.
        why_not_sharded: Why the variant needs each matrix on one process; empty if it works on shards.
        changes_base: Whether the adapters start with a part of the base, which is taken out of it.
        needs_quantized_layers: Whether at least one adapted layer must be quantized.
        chooses_ranks: Whether the ranks follow from data or training instead of the settings.
        state_key: The key of the variant's state in a checkpoint; empty if it has none beside its tensors.
        config_class: PEFT's configuration of such adapters.
    """

    option: ClassVar[str] = "model.lora"
    excludes: ClassVar[Mapping[str, str]] = {}
    refused_bits: ClassVar[Collection[int]] = ()
    why_not_quantized: ClassVar[str] = ""
    why_not_sharded: ClassVar[str] = ""
    changes_base: ClassVar[bool] = False
    needs_quantized_layers: ClassVar[bool] = False
    chooses_ranks: ClassVar[bool] = False
    state_key: ClassVar[str] = ""
    config_class: ClassVar[type[LoraConfig]] = LoraConfig

    def __init__(self, value: Any = None) -> None:
        self.value = value

    @property
    def title(self) -> str:
        """What messages call the variant: its option."""
        return self.option

    @classmethod
    def from_settings(cls, lora: Any, optimization: Any) -> Self | None:
        """Makes the variant if the settings ask for it.

        Args:
            lora: `LoraSettings`, or `None`.
            optimization: `OptimizationSettings`, or `None` while only the adapter's settings are known.

        Returns:
            The variant; `None` if the option that chooses it is not set.
        """
        section, _, name = cls.option.rpartition(".")
        settings = {"model.lora": lora, "model.optimization": optimization}[section]
        value = None if settings is None else getattr(settings, name)
        return cls(value) if value else None

    # Checks, before any weights load.

    def check_settings(self, lora: Any) -> None:
        """Refuses adapter settings that the variant cannot work with, beyond `excludes`.

        Args:
            lora: `LoraSettings`.

        Raises:
            ConfigurationError: If there are such settings.
        """

    def check_base(self, bits: int | None) -> None:
        """Refuses a base that the variant cannot work on.

        Args:
            bits: 4 or 8 of a quantized base, else `None`.

        Raises:
            ConfigurationError: If the variant fails on such weights, or loses what it starts with.
        """
        if bits in self.refused_bits:
            msg = (
                f"{self.option} is {str(self.value).lower()}, but the base is quantized to {bits} bits: "
                f"{self.why_not_quantized}; leave {self.option.rpartition('.')[2]} out, or train on a base that is not "
                "quantized."
            )
            raise ConfigurationError(msg)

    def check_sharding(self) -> None:
        """Refuses to run on a model whose matrices are sharded over processes, if the variant needs full matrices.

        Raises:
            ConfigurationError: If it does.
        """
        if self.why_not_sharded:
            msg = (
                f"{self.title} does not work with a strategy that shards the model: {self.why_not_sharded}; set "
                "trainer.strategy to ddp, or leave the variant out."
            )
            raise ConfigurationError(msg)

    def check_layer(self, module: str, layer: nn.Module, rank: int) -> None:
        """Refuses a layer that the variant cannot adapt.

        Args:
            module: The layer's name.
            layer: Before it is adapted; may be on the meta device.
            rank: Of its adapter.

        Raises:
            ConfigurationError: If the layer is of the wrong kind, or too small for the rank.
        """

    def check_schedule(self, total_steps: Callable[[], float]) -> None:
        """Refuses a training that is too short for the variant.

        Args:
            total_steps: Returns the optimizer steps of the whole run; infinity if the trainer sets no end.

        Raises:
            ConfigurationError: If it is.
        """

    # Building the adapters.

    @property
    def initial_rank(self) -> tuple[str, int] | None:
        """The option below `model.lora` that sets every adapter's first rank, and its value; `None` for `r`."""
        return None

    def peft_arguments(self) -> dict[str, Any]:
        """The arguments of `config_class` in which the variant differs from plain LoRA."""
        return {}

    def after_attaching(self, network: PeftModel) -> None:
        """Changes adapters that have just been made.

        Args:
            network: With its adapters; changed in place.
        """

    def start_from_base(
        self, network: PeftModel, original_weights: Callable[[Collection[str]], Mapping[str, Tensor]]
    ) -> None:
        """Gives the adapters a start that follows from the base, unless they come from a checkpoint.

        Args:
            network: With its adapters; changed in place.
            original_weights: Returns, by the layer's name, weights that the base was quantized from, (out_features,
                in_features), any floating dtype.
        """

    def before_training(self, network: PeftModel, training: TrainingFacts) -> None:
        """Prepares a training, before its optimizer is made; called for each `Trainer.fit`, on every process.

        Args:
            network: With its adapters; changed in place.
            training: What is known about the run.

        Raises:
            ConfigurationError: If the data gives the variant nothing to start from.
        """

    def freeze_parameters(self, network: PeftModel) -> None:
        """Freezes what the variant does not train; called whenever the adapters are new.

        Args:
            network: With its adapters; changed in place.
        """

    # The optimizer.

    def optimizer_class(self, network: nn.Module) -> Callable[..., AdamW] | None:
        """The optimizer that the variant needs.

        Args:
            network: Holds the adapters.

        Returns:
            Takes AdamW's arguments; `None` for AdamW itself.
        """
        del network
        return None

    def learning_rate_factor(self, name: str, parameter: nn.Parameter) -> float:
        """What the learning rate of a parameter is multiplied by.

        Args:
            name: Dotted name.
            parameter: Trainable.

        Returns:
            The factor, above 0.
        """
        del name, parameter
        return 1.0

    # Each step.

    def before_step(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Changes the gradients of an optimizer step before they are clipped.

        Args:
            network: Holds the adapters and their gradients, unscaled.

        Returns:
            Scalars to log, by tag.
        """
        del network
        return {}

    def after_step(self, network: PeftModel, step: int) -> None:
        """Changes the adapters after an optimizer step, while its gradients are still there.

        Args:
            network: With its adapters; changed in place.
            step: Optimizer steps done, this one included.
        """

    def is_settled(self, network: PeftModel, step: int) -> bool:
        """Whether the adapters have the shape in which they may be exported.

        Args:
            network: With its adapters.
            step: Optimizer steps done.

        Returns:
            True for plain LoRA.
        """
        del network, step
        return True

    # Checkpoints.

    def saved_buffers(self, network: nn.Module) -> list[str]:
        """Names of the buffers that a checkpoint must hold beside the adapters."""
        del network
        return []

    def state(self, network: PeftModel) -> dict[str, Any]:
        """What a resumed run needs beside the tensors; saved if there is a `state_key`."""
        del network
        return {}

    def load_state(self, network: PeftModel, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned.

        Args:
            network: With its adapters; changed in place.
            state: From a checkpoint.
        """

    def adopt_shapes(self, network: PeftModel, state: Mapping[str, Tensor]) -> None:
        """Gives the adapters the shapes that they have in a checkpoint, before these are compared.

        Args:
            network: With its adapters; changed in place.
            state: The network's tensors in the checkpoint, not checked yet.
        """

    def before_loading(self, network: PeftModel, state: Mapping[str, Tensor]) -> None:
        """Changes the base as a checkpoint needs it, before its tensors are loaded.

        Args:
            network: With its adapters; changed in place.
            state: The network's tensors in the checkpoint; names and shapes fit.
        """

    # Exporting and merging; by layer, whatever made it.

    @classmethod
    def has_made(cls, layer: LoraLayer) -> bool:
        """Whether a layer's adapter computes as this variant's do, so that it has to export and merge it."""
        del layer
        return False

    @classmethod
    def needs_conversion(cls, network: PeftModel) -> bool:
        """Whether PEFT's own format of such adapters would not be plain LoRA (or DoRA) on the pretrained base."""
        del network
        return False

    @classmethod
    def exported_factors(cls, module: str, layer: LoraLayer) -> tuple[Tensor, Tensor, float]:
        """One layer's update as plain LoRA.

        Args:
            module: The layer's name.
            layer: Of `adapted_layers`.

        Returns:
            A, (r, in_features), and B, (out_features, r), float32, on the layer's device, and the scaling s, so that
            dW = s B A.
        """
        delta = layer_delta(module, layer)
        return delta.A, delta.B, delta.scaling

    @classmethod
    def merged_weight(cls, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
        """One layer's weight with its adapter merged into it: W + dW.

        Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.

        Args:
            module: The layer's name.
            layer: Of `adapted_layers`.
            weight: W, (out_features, in_features), float32.

        Returns:
            (out_features, in_features), float32, a new tensor.
        """
        delta = layer_delta(module, layer)
        return torch.addmm(weight, delta.B, delta.A, alpha=delta.scaling)


class Initialization(Variant):
    """A variant that is chosen by `model.lora.init_lora_weights`.

    Attributes:
        initializations: The values that choose it, as messages list them.
    """

    option = "model.lora.init_lora_weights"
    initializations: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """The option and its value, which other initializations share."""
        return f"{self.option} {self.value}"

    @classmethod
    def is_chosen_by(cls, value: object) -> bool:
        """Whether a value of `init_lora_weights` chooses this initialization."""
        return value in cls.initializations

    @classmethod
    def from_settings(cls, lora: Any, optimization: Any) -> Self | None:
        """Makes the variant if `init_lora_weights` chooses it."""
        del optimization
        return cls(lora.init_lora_weights) if lora is not None and cls.is_chosen_by(lora.init_lora_weights) else None
