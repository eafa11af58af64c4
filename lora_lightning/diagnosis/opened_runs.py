"""Loads the best checkpoints of runs with their validation data, the last few at a time."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
from lightning import Trainer
from torch import Tensor, nn

from lora_lightning.artefacts.example_measuring import SplitExamples
from lora_lightning.artefacts.finished_run import open_run
from lora_lightning.artefacts.observers import ValidationObserver
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.lora.base_layers import base_linear_layers, base_weight
from lora_lightning.lora.quantized import dequantized_weight, quantized_bits
from lora_lightning.studies.worker import free_memory
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.commands import explain_errors

MOST_OPEN = 2


@dataclass(frozen=True)
class OpenedRun:
    """A run's best checkpoint in evaluation mode.

    Attributes:
        run: The run.
        task: Has the model.
        trainer: Knows device and precision.
        examples: Some of the validation split.
    """

    run: FinishedRun
    task: AdaptationTask
    trainer: Trainer
    examples: SplitExamples

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The pretrained linear layers by name."""
        return base_linear_layers(self.task.built_network)

    def quantized_layers(self) -> dict[str, nn.Module]:
        """Those that bitsandbytes quantized."""
        return {name: layer for name, layer in self.layers.items() if quantized_bits(layer)}


class OpenedRuns:
    """Opens runs, and keeps the last two in memory.

    Args:
        rows: Validation examples of each, about.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._opened: OrderedDict[str, OpenedRun] = OrderedDict()

    def open(self, run: FinishedRun) -> OpenedRun:
        """Opens a run, unless it is one of the last two.

        Args:
            run: The run.

        Returns:
            Its model and data.

        Raises:
            LoraLightningError: If it has no checkpoint, or its base or data is not there any more or has changed.
        """
        if run.trial.id in self._opened:
            self._opened.move_to_end(run.trial.id)
            return self._opened[run.trial.id]
        while len(self._opened) >= MOST_OPEN:
            self._opened.popitem(last=False)
        free_memory()
        with explain_errors(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were printed when the run was trained
            opened = open_run(run.record.folder, validates=False)
        observer = cast("ValidationObserver", opened.observer)
        examples = SplitExamples(observer.task, observer.trainer, "val").spread(self.rows)
        found = OpenedRun(run, observer.task, observer.trainer, examples)
        found.task.built_network.eval()
        self._opened[run.trial.id] = found
        return found


@torch.no_grad()
def quantized_weight_of(layer: nn.Module) -> Tensor:
    """What a quantized layer computes with, (out_features, in_features), float32."""
    return dequantized_weight(layer).detach().float()


@torch.no_grad()
def full_weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer that is not quantized, (out_features, in_features), float32."""
    return base_weight(layer).float()
