"""Opens the exported folder as any user would: a fresh base, plain PEFT, merged by PEFT."""

import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import cast

import torch
from lightning import Trainer
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lora_lightning.analysis.merged_weights import compare_merged_weight, first_other_weight
from lora_lightning.compat.peft import TrainableTokensWrapper
from lora_lightning.lora.delta import (
    adapted_layers,
    adapted_parameter_name,
    adapter_deltas,
    is_transposed,
    pretrained_weight,
)
from lora_lightning.lora.merging import merged_adapters, merged_weight
from lora_lightning.lora.parameter_names import name_without_copies
from lora_lightning.lora.quantized import quantized_bits
from lora_lightning.tasks import AdaptationTask

EXPERTS = 3  # dimensions of a parameter that holds all experts of a layer
SAME = 1e-3  # relative: a larger error of an update is none of float32's


def open_export(trainer: Trainer, task: AdaptationTask, folder: Path) -> PreTrainedModel | PeftModel:
    """Loads the base again and the exported adapter on it.

    Args:
        trainer: Whose precision counts.
        task: In training; its class and settings say how the base is loaded.
        folder: The exported one.

    Returns:
        The merged model on the task's device; on a quantized base, into which PEFT's merge would round, the model with
        its adapter beside it.

    Raises:
        BackboneError: If the base cannot be found any more.
        Exception: Whatever PEFT raises for a folder that it cannot load.
    """
    model = load_exported_adapter(trainer, task, folder)
    if any(quantized_bits(layer.get_base_layer()) for layer in adapted_layers(model).values()):
        return model.to(task.device).eval()
    return cast("PreTrainedModel", model.merge_and_unload().to(task.device).eval())


def load_exported_adapter(trainer: Trainer, task: AdaptationTask, folder: Path) -> PeftModel:
    """Loads the base again and an exported adapter beside it.

    Args:
        trainer: Whose precision counts.
        task: Its model's class and its settings say how the base is loaded.
        folder: The exported one.

    Returns:
        The adapter model, on the device where the base was loaded.

    Raises:
        BackboneError: If the base cannot be found any more.
        Exception: Whatever PEFT raises for a folder that it cannot load.
    """
    base = cast("PreTrainedModel", trainer.precision_plugin.convert_module(task.load_plain_base()))
    base.requires_grad_(requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing in the folder shows in weights and outputs
        model: PeftModel = PeftModel.from_pretrained(base, str(folder), torch_device="cpu")
    return model


@torch.no_grad()
def find_weight_fault(task: AdaptationTask, exported: PreTrainedModel | PeftModel) -> str | None:
    """Finds the first difference between the exported model's weights and the task's.

    Args:
        task: With the weights that were exported.
        exported: From `open_export`.

    Returns:
        A clause that names the first layer; `None` if all are the same to rounding.
    """
    if isinstance(exported, PeftModel):
        return _first_other_update(task, exported)
    for name, layer in adapted_layers(task).items():
        found = exported.get_parameter(adapted_parameter_name(name, layer)).detach()
        base = pretrained_weight(layer)
        matrices = (found.mT if is_transposed(layer) else found, base, merged_weight(name, layer, base))
        for each in zip(*matrices, strict=True) if base.dim() == EXPERTS else [matrices]:
            if fault := compare_merged_weight(*each).fault:
                return f"{name} {fault}"
    adapted = {adapted_parameter_name(name, layer) for name, layer in adapted_layers(task).items()}
    with merged_adapters(task, "base"):  # of layers with lora_bias also the bias is merged
        expected_weights = {name: tensor.detach() for name, tensor in _other_weights(task, adapted)}
        return first_other_weight(dict(exported.named_parameters(remove_duplicate=False)), expected_weights)


def _first_other_update(task: AdaptationTask, exported: PeftModel) -> str | None:
    found = {delta.name: delta for delta in adapter_deltas(exported)}
    for expected in adapter_deltas(task):
        if expected.name not in found:
            return f"{expected.name} has no adapter"
        own, dense = found[expected.name].dense(), expected.dense()
        if not float((own - dense).norm()) <= SAME * float(dense.norm()):
            share = float((own * dense).sum() / dense.square().sum())
            return f"{expected.name} holds {100 * share:.4g} % of its update"
    return None


def _other_weights(task: AdaptationTask, adapted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Everything but the merged weights, by its name in the plain model; the adapters are merged meanwhile."""
    model = task.transformers_model
    skipped = [name for name, module in model.named_modules() if isinstance(module, TrainableTokensWrapper)]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name_without_copies(name)
        if plain is None or any(name.startswith(f"{module}.") for module in skipped):
            continue
        if plain not in adapted:
            yield plain, parameter
