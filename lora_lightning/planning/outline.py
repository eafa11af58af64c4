"""Builds the network of a training without weights: on the meta device, adapters in place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from lora_lightning.lora.injection import modules_trained_in_full
from lora_lightning.planning.quantized_stand_ins import quantize_without_storage
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.backbone_outline import backbone_without_storage
from lora_lightning.tasks.gradient_checkpointing import enable_gradient_checkpointing


@dataclass(frozen=True)
class Outline:
    """A network without values.

    Attributes:
        task: Holds the network as `fit` would train it, on the meta device.
        notes: Sentences on what was assumed.
    """

    task: AdaptationTask
    notes: Sequence[str] = ()

    @property
    def network(self) -> nn.Module:
        """The network, adapters in place."""
        return self.task.built_network


def build_outline(task: AdaptationTask, compute_dtype: torch.dtype = torch.float32) -> Outline:
    """Builds a task's network without weights, as its `configure_model` would build it with them.

    Args:
        task: Knows its labels; gets the network. Its `quantization` decides which layers have stand-ins.
        compute_dtype: In which dtype 4-bit weights are multiplied.

    Returns:
        The network.

    Raises:
        LoraLightningError: If a setting does not fit the architecture.
    """
    notes: list[str] = []
    if task.auto_class is None:
        task.network = task.build_network()  # it makes its base itself, from a few numbers
        return Outline(task)
    loaded = backbone_without_storage(task, notes)
    if task.quantization is not None and task.lora is not None:
        trained = modules_trained_in_full(loaded.model, task.lora, loaded.lacked)
        quantize_without_storage(loaded.model, task.quantization, compute_dtype, trained)
    with torch.device("meta"):
        task.network = task.adapt(loaded)
        task.freeze_parameters_of_variants()
    if task.gradient_checkpointing:
        model = task.network.get_base_model() if isinstance(task.network, PeftModel) else task.network
        enable_gradient_checkpointing(model)
    return Outline(task, notes)
