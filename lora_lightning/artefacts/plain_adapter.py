"""A run's adapter as everybody else sees it: exported as plain LoRA, and loaded by PEFT on a fresh base."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from lightning import Trainer
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lightning.analysis.merge_verdict import default_tolerance
from lora_lightning.analysis.outputs import OutputComparison, OutputDifference, Outputs
from lora_lightning.artefacts.observers import raw_logits
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.reload_check import some_batches
from lora_lightning.backbones.export import export_model
from lora_lightning.backbones.first_token import keep_first_token_only
from lora_lightning.backbones.saved_base import BASE_MODEL
from lora_lightning.callbacks.exported_model import load_exported_adapter
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.quantized import (
    computing_in_float32,
    forget_8bit_weights,
    keep_8bit_scales_beside_weights,
)
from lora_lightning.runs.history import read_json
from lora_lightning.runs.layout import RUN
from lora_lightning.tasks import AdaptationTask, SequenceClassificationTask

ROWS = 8  # of a batch: equal models are equal on few
NO_DECISIONS = torch.empty(0, dtype=torch.int64)


def write_adapter(opened: OpenedAdapter, task: AdaptationTask, network: PeftModel, folder: Path) -> int:
    """Writes an adapter folder as a run writes its own.

    Args:
        opened: The run.
        task: Its task.
        network: The adapter to write.
        folder: Replaced if it exists.

    Returns:
        Bytes of the weight file. The folder names the base as the run's own export does.

    Raises:
        OSError: If the disk is full.
    """
    files = {**opened.files, **task.export_files()}  # with the threshold as it is now
    if task.base_identity is not None:
        files[f"{BASE_MODEL}.json"] = task.base_identity.as_dict()
    origin = read_json(opened.source / RUN).get("continued_from")
    export_model(network, opened.tokenizer, folder, files, continued_from=origin, base=opened.named_base)
    return weight_bytes(folder)


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of an adapter folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def load_plain_adapter(trainer: Trainer, task: AdaptationTask, folder: Path) -> PeftModel:
    """Loads an adapter folder on a fresh base.

    Args:
        trainer: Whose device and precision count.
        task: Says how the base is loaded.
        folder: The adapter.

    Returns:
        The adapter model in evaluation mode, on the task's device.
    """
    network = load_exported_adapter(trainer, task, folder)
    network.to(task.device)
    keep_8bit_scales_beside_weights(network)
    if isinstance(task, SequenceClassificationTask):
        keep_first_token_only(cast("PreTrainedModel", network.get_base_model()))  # same logits
    fuse_lora_layers(network)
    return network.eval()


def release_weights(network: nn.Module) -> None:
    """Empties the tensors of a model that will not run any more, whoever still refers to it.

    Args:
        network: Keeps its layers and its configuration, which say how to load its base once more.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.new_empty(0)
    forget_8bit_weights(network)


@torch.no_grad()
def logits_of_some_rows(opened: OpenedAdapter, network: nn.Module) -> list[Tensor]:
    """The logits of a model for at most four times eight rows, spread over the validation split.

    Args:
        opened: Has the batches.
        network: On the task's device.

    Returns:
        Of each batch, float32, on the CPU.
    """
    observer = opened.observer
    with observer.isolated(), computing_in_float32(network):
        batches = [{name: tensor[:ROWS] for name, tensor in batch.items()} for batch in some_batches(observer.batches)]
        return [raw_logits(network, batch, observer.device).float().cpu() for batch in batches]


def logit_tolerance(network: nn.Module) -> float:
    """By how much the logits of two equal models may differ.

    Args:
        network: An adapter model.

    Returns:
        Relative to the largest logit of `logits_of_some_rows`.
    """
    with computing_in_float32(network):
        return default_tolerance(network)


def compare_logits(first: Sequence[Tensor], second: Sequence[Tensor], base: Sequence[Tensor]) -> OutputDifference:
    """How far the logits of two models are apart, beside the adapter's effect on them.

    Args:
        first: From `logits_of_some_rows`.
        second: Of another model.
        base: Of the first model without its adapter.

    Returns:
        The difference, without decisions; NaN if a logit is.
    """
    comparison = OutputComparison()
    for each in zip(first, second, base, strict=True):
        comparison.update(*(Outputs(logits, "number", NO_DECISIONS) for logits in each))
    return comparison.result()
