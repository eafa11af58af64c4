"""Builds the network of a training without weights: on the meta device, adapters in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from lora_lightning.backbones import LoadedBackbone
from lora_lightning.backbones.finished_head import match_head_to_labels
from lora_lightning.backbones.head_modules import modules_beside_base
from lora_lightning.backbones.loading import build_without_storage, load_model, renamed_weights
from lora_lightning.lora.injection import modules_trained_in_full
from lora_lightning.planning.quantized_stand_ins import quantize_without_storage
from lora_lightning.planning.settings import has_weights, local_folder
from lora_lightning.tasks import AdaptationTask
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
    loaded = _backbone_without_storage(task, notes)
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


def _backbone_without_storage(task: AdaptationTask, notes: list[str]) -> LoadedBackbone:
    config = task.load_config()
    folder = local_folder(task.backbone)
    renamed = None
    if has_weights(folder):  # their names alone are read
        if task.model_class is not AutoModelForCausalLM:
            renamed = renamed_weights(build_without_storage(task.model_class, config))
        loaded = load_model(task.model_class, str(folder), config, key_mapping=renamed, values=False)
        cast("nn.Module", loaded.model).to("meta")  # a GGUF file is read all the same
    else:
        loaded = _assumed_backbone(task, config, notes)
    return match_head_to_labels(loaded, task.backbone) if _is_classifier(task) else loaded


def _assumed_backbone(task: AdaptationTask, config: PretrainedConfig, notes: list[str]) -> LoadedBackbone:
    """A model whose weights are not here: they are taken to lack a new head, and nothing else."""
    model = build_without_storage(task.model_class, config)
    is_finished = type(model).__name__ in (config.architectures or [])
    if task.model_class is AutoModelForCausalLM or is_finished:
        return LoadedBackbone(model, [])
    # Without dropout and whatever else has nothing to train: PEFT would look for modules of such a name.
    lacked = [name for name in modules_beside_base(model) if any(True for _ in model.get_submodule(name).parameters())]
    notes.append(
        "The weights are not on this machine; they are assumed to lack only the head "
        f"({', '.join(lacked) or 'none'}), which is trained in full."
    )
    return LoadedBackbone(model, lacked)


def _is_classifier(task: AdaptationTask) -> bool:
    return hasattr(task, "label_space")
