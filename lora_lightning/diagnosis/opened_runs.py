"""Loads the best checkpoints of runs with their validation data, the last few at a time."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
from lightning import Trainer
from torch import Tensor, nn

from lora_lightning.artefacts.example_measuring import ChosenRows, SplitExamples
from lora_lightning.artefacts.finished_run import open_run
from lora_lightning.artefacts.observers import ValidationObserver
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.errors import DataError
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
    """Opens runs, and keeps the last two in memory. All of them have the same validation examples.

    Args:
        rows: Validation examples of each, about.
        first: Whose batches the examples are chosen from; `None` for the run that is opened first.
    """

    def __init__(self, rows: int, first: FinishedRun | None = None) -> None:
        self.rows, self.first = rows, first
        self._opened: OrderedDict[str, OpenedRun] = OrderedDict()
        self._chosen: ChosenRows | None = None

    def open(self, run: FinishedRun) -> OpenedRun:
        """Opens a run, unless it is one of the last two.

        Args:
            run: The run.

        Returns:
            Its model and data.

        Raises:
            LoraLightningError: If it has no checkpoint, or its base or data is not there any more or has changed.
            DataError: If it reads other validation examples than the first run.
        """
        if self.first is None:
            self.first = run
        if self._chosen is None and run.trial.id != self.first.trial.id:
            self.open(self.first)
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
        examples = self._examples(run, SplitExamples(observer.task, observer.trainer, "val").spread(self.rows))
        found = OpenedRun(run, observer.task, observer.trainer, examples)
        found.task.built_network.eval()
        self._opened[run.trial.id] = found
        return found

    def _examples(self, run: FinishedRun, own: SplitExamples) -> SplitExamples:
        """The rows of the first run: batches of another size would spread over other ones."""
        if self._chosen is None or self.first is None:
            self._chosen = own.chosen
            return own
        if not own.has_rows(self._chosen):
            msg = f"the run {run.title!r} reads other validation examples (rows, tokens or labels) than "
            msg += f"{self.first.title!r}, so the models cannot be compared; give both precisions the same options of "
            msg += "data, such as lengths, delete the folders of the runs that no longer count, and run the diagnosis "
            msg += "again"
            raise DataError(msg)
        return own.at(self._chosen)


@torch.no_grad()
def quantized_weight_of(layer: nn.Module) -> Tensor:
    """What a quantized layer computes with, (out_features, in_features), float32."""
    return dequantized_weight(layer).detach().float()


@torch.no_grad()
def full_weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer that is not quantized, (out_features, in_features), float32."""
    return base_weight(layer).float()
