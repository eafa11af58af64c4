"""A run's adapter as everybody else sees it: exported as plain LoRA, and loaded by PEFT on a fresh base."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from lightning import Trainer
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lightning.artefacts.observers import raw_logits
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.reload_check import some_batches
from lora_lightning.backbones.export import export_model
from lora_lightning.backbones.first_token import keep_first_token_only
from lora_lightning.backbones.saved_base import BASE_MODEL
from lora_lightning.callbacks.exported_model import load_exported_adapter
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.quantized import keep_8bit_scales_beside_weights
from lora_lightning.runs.history import read_json
from lora_lightning.runs.layout import RUN
from lora_lightning.tasks import AdaptationTask, SequenceClassificationTask


def write_adapter(opened: OpenedAdapter, task: AdaptationTask, network: PeftModel, folder: Path) -> int:
    """Writes an adapter folder as a run writes its own.

    Args:
        opened: The run.
        task: Its task.
        network: The adapter to write.
        folder: Replaced if it exists.

    Returns:
        Bytes of the weight file.

    Raises:
        OSError: If the disk is full.
    """
    files = dict(opened.files)
    if task.base_identity is not None:
        files[f"{BASE_MODEL}.json"] = task.base_identity.as_dict()
    origin = read_json(opened.source / RUN).get("continued_from")
    export_model(network, opened.tokenizer, folder, files, continued_from=origin)
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


@torch.no_grad()
def logits_of_some_batches(opened: OpenedAdapter, network: nn.Module) -> list[Tensor]:
    """The logits of a model for at most four batches, spread over the validation split.

    Args:
        opened: Has the batches.
        network: On the task's device.

    Returns:
        Of each batch, float32, on the CPU.
    """
    observer = opened.observer
    with observer.isolated():
        batches = some_batches(observer.batches)
        return [raw_logits(network, batch, observer.device).float().cpu() for batch in batches]


def compare_logits(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[float, float]:
    """How far the logits of two models are apart.

    Args:
        first: From `logits_of_some_batches`.
        second: Of another model.

    Returns:
        The largest absolute difference (infinity if one is NaN), and the largest absolute logit of the first.
    """
    difference = largest = 0.0
    for before, after in zip(first, second, strict=True):
        shown = ~before.isinf()  # a start or end at padding is minus infinity in both
        distance = (before - after)[shown].abs().nan_to_num(torch.inf, posinf=torch.inf)
        difference = max(difference, float(distance.max()) if distance.numel() else 0.0)
        finite = before[before.isfinite()]
        largest = max(largest, float(finite.abs().max()) if finite.numel() else 0.0)
    return difference, largest
