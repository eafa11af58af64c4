"""The outputs of the adapted model, of its base and of merges, for the same held-out batches."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning import Trainer

from lora_lightning.analysis.merge_verdict import FIRM, Noise, Verdict, merge_verdict, noise_of, rounding_dtype
from lora_lightning.analysis.outputs import OutputComparison, OutputDifference, example_scores
from lora_lightning.callbacks.adapter_monitor import TOTAL, Measurement
from lora_lightning.lora.delta import adapted_layers, adapted_parameter_name
from lora_lightning.lora.merging import MergeTarget, merge_targets, merged_adapters, without_adapters
from lora_lightning.lora.rounding import jitter_last_place_
from lora_lightning.lora.sharding import local_shard
from lora_lightning.statistics import Recovery, recovery_ratio
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.held_out_batches import Batch, Observation, run_batches, validation_precision

INTACT = 3  # merges that differ in their rounding alone


class MergeComparison:
    """The outputs of the adapted model, of its base, and of merges, for the same batches.

    Args:
        trainer: Knows processes and precision.
        task: In evaluation mode; its weights are what is compared with.
        batches: Of this process, on the host.
    """

    def __init__(self, trainer: Trainer, task: AdaptationTask, batches: list[Batch]) -> None:
        self.trainer, self.task, self.batches = trainer, task, batches
        self.measurements: list[Measurement] = []
        self._differences: dict[str, OutputDifference] = {}
        self._from_base: dict[str, OutputDifference] = {}
        self._recoveries: dict[str, Recovery] = {}
        self._adapted = run_batches(trainer, task, batches)
        with without_adapters(task):
            self._base = run_batches(trainer, task, batches, with_metrics=False)
        self._adapter = compare_observations(trainer, self._adapted, self._base)
        self._weights = [adapted_parameter_name(name, layer) for name, layer in adapted_layers(task).items()]
        with validation_precision(trainer):
            self._dtype = rounding_dtype(task)
        self.noise = self._noise()

    def of_the_adapter(self) -> list[Measurement]:
        """How far the adapted model is from its base."""
        return [*_rows("adapter", self._adapter), _seconds("adapted", self._adapted)]

    def _noise(self) -> Noise:
        """What the rounding of intact merges changes; the exact target's, in memory."""
        target: MergeTarget = "base" if "base" in merge_targets(self.task) else "dequantized"
        intact, changes = [], []
        for seed in range(INTACT):
            with merged_adapters(self.task, target):
                self._round_otherwise(seed)
                found = run_batches(self.trainer, self.task, self.batches, with_metrics=False)
            intact.append(compare_observations(self.trainer, self._adapted, found, self._base))
            changes.append(self._recovery(found).change.value)
        return noise_of(intact, changes, self._dtype)

    def _round_otherwise(self, seed: int) -> None:
        """Changes the rounding of merged weights in place; the merge that is in effect puts them back."""
        generator, model = torch.Generator().manual_seed(seed), self.task.transformers_model
        for name in self._weights:
            weight = model.get_parameter(name)
            jitter_last_place_(local_shard(weight.detach()), self._dtype, generator)

    def _recovery(self, found: Observation) -> Recovery:
        states = [example_scores(observed.outputs) for observed in (self._base, self._adapted, found)]
        scores = gather_arrays(self.trainer, [score for score, _ in states] + [states[0][1]])
        return recovery_ratio(*scores)

    def add(self, target: str) -> None:
        """Compares the model as it is now.

        Args:
            target: The merge that it is.
        """
        found = run_batches(self.trainer, self.task, self.batches)
        difference = compare_observations(self.trainer, self._adapted, found, self._base, FIRM * self.noise.logit)
        recovery = self._recovery(found)
        self._differences[target] = difference
        self._from_base[target] = compare_observations(self.trainer, self._base, found)
        self._recoveries[target] = recovery
        self.measurements += [*_rows(target, difference), _seconds(target, found)]
        self.measurements += metric_changes(self.trainer, target, self._adapted.metrics, found.metrics)
        if recovery.has_gain:
            values = asdict(recovery.ratio).values()
            names = ("recovery_ratio", "recovery_ratio_low", "recovery_ratio_high")
            self.measurements += [
                Measurement(TOTAL, f"{target}/{name}", value) for name, value in zip(names, values, strict=True)
            ]

    def verdict(self, tolerance: float, given: float | None, weight_fault: str | None) -> Verdict:
        """Decides about all that was added.

        Args:
            tolerance: The default one, relative to the largest logit.
            given: The user's, which always holds; `None` if none was set.
            weight_fault: What is wrong with the exported folder's weights.

        Returns:
            The verdict.
        """
        verified = "exported" in self._differences and weight_fault is None
        return merge_verdict(
            self._differences,
            self._from_base,
            self._adapter,
            self.noise,
            tolerance,
            math.inf if given is None and verified else given,
            self._recoveries,
            weight_fault,
        )


def gather_arrays(trainer: Trainer, arrays: list[Any]) -> list[Any]:
    """The same arrays with the examples of all processes; collective.

    Args:
        trainer: Knows the processes.
        arrays: (examples,) each.

    Returns:
        One array for each.
    """
    parts: list[Any] = [arrays]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, arrays)
    return [np.concatenate([part[number] for part in parts]) for number in range(len(arrays))]


def compare_observations(
    trainer: Trainer, first: Observation, second: Observation, base: Observation | None = None, noise: float = 0.0
) -> OutputDifference:
    """How far two states are apart, over the batches of all processes; collective.

    Args:
        trainer: Knows the processes.
        first: One state.
        second: The other.
        base: The first state without its adapter.
        noise: How far rounding may move a logit.

    Returns:
        The difference.
    """
    comparison = OutputComparison(noise)
    bases = [None] * len(first.outputs) if base is None else base.outputs
    for left, right, without in zip(first.outputs, second.outputs, bases, strict=True):
        comparison.update(left, right, without)
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        comparison.sums = trainer.strategy.reduce(comparison.sums.to(device), reduce_op="sum").cpu()
        comparison.maxima = trainer.strategy.reduce(comparison.maxima.to(device), reduce_op="max").cpu()
    return comparison.result()


def metric_changes(
    trainer: Trainer, target: str, before: Mapping[str, float], after: Mapping[str, float]
) -> list[Measurement]:
    """The change of the loss and of the metric that decides which checkpoint is best."""
    monitors = [str(getattr(callback, "monitor", "")) for callback in trainer.checkpoint_callbacks]
    names = dict.fromkeys(["loss", *(monitor.partition("/")[2] for monitor in monitors)])
    return [
        Measurement(TOTAL, f"{target}/change_of_{name}", after[name] - before[name])
        for name in names
        if name in before and name in after
    ]


def _rows(of: str, difference: OutputDifference) -> list[Measurement]:
    names = ("max_logit_difference", "mean_logit_difference", "kl_divergence", "flipped_share")
    values = asdict(difference)
    return [Measurement(TOTAL, f"{of}/{name}", values[name]) for name in names]


def _seconds(of: str, observation: Observation) -> Measurement:
    return Measurement(TOTAL, f"{of}/seconds_per_batch", observation.seconds)
