"""A few held-out batches, and what a state of the model says about them."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, cast

import torch
from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics import Metric

from lora_lightning.callbacks.throughput import time_when_idle
from lora_lightning.lora.comparison import Outputs
from lora_lightning.tasks import AdaptationTask

Batch = dict[str, Tensor]


class Observation(NamedTuple):
    """What one state of the model says about the held-out batches.

    Attributes:
        outputs: One a batch, on the host.
        metrics: Of the task, over the batches of all processes.
        seconds: A batch takes, on average.
    """

    outputs: list[Outputs]
    metrics: dict[str, float]
    seconds: float


def held_out_batches(trainer: Trainer, count: int) -> list[Batch]:
    """Some of this process's validation batches, spread evenly, on the host; loading them draws no random number."""
    with isolate_rng():
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        loaders = trainer.val_dataloaders if datamodule is None else datamodule.val_dataloader()
        loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
        if not loader:
            return []
        wanted = set(torch.linspace(0, len(loader) - 1, min(count, len(loader))).round().long().tolist())
        return [batch for number, batch in enumerate(loader) if number in wanted]


@contextmanager
def undisturbed(task: AdaptationTask) -> Iterator[None]:
    """In evaluation mode without gradients; modes, metrics and random states are afterwards what they were."""
    modes = [(module, module.training) for module in task.modules()]
    metrics = task.metrics
    task.metrics = copy.deepcopy(metrics)
    task.eval()
    try:
        # In-place changes of weights are not for inference mode, in which Lightning validates.
        with isolate_rng(), torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        task.metrics = metrics
        for module, mode in modes:
            module.training = mode


def observe(trainer: Trainer, task: AdaptationTask, batches: list[Batch], *, with_metrics: bool = True) -> Observation:
    """Runs the model as it is over the batches; collective, for its metrics.

    Args:
        trainer: Knows devices and precision.
        task: In evaluation mode.
        batches: On the host.
        with_metrics: Whether to have the task's metrics too, for a pass more; it goes first and warms up for the one
            that is timed.

    Returns:
        What it says.
    """
    for module in task.metrics.modules():
        if isinstance(module, Metric):
            module.reset()
    outputs, seconds = [], 0.0
    for batch in batches:
        moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        with precision(trainer):
            if with_metrics:
                task.validation_step(moved, 0)
            with stopwatch(task.device) as took:
                said = task.outputs(moved)
        seconds += took[0]
        outputs.append(Outputs(said.logits.cpu(), said.distribution, said.decisions.cpu()))
    broken = torch.tensor(any(bool(said.logits.isnan().any()) for said in outputs), dtype=torch.int64)
    broken = trainer.strategy.reduce(broken.to(task.device), reduce_op="max")
    metrics = {} if broken or not with_metrics else task.metric_values(first_split(task))  # no metric is made for NaN
    return Observation(outputs, metrics, seconds / len(batches))


@contextmanager
def stopwatch(device: torch.device) -> Iterator[list[float]]:
    """Seconds that the work inside takes, in a list of one; waits for a GPU before and after."""
    took = [0.0]
    start = time_when_idle(device)
    yield took
    took[0] = time_when_idle(device) - start


def first_split(task: AdaptationTask) -> str:
    """The name of the first validation loader's split."""
    splits: list[str] = getattr(task, "scored_splits", ["val"])
    return splits[0]


def precision(trainer: Trainer) -> AbstractContextManager[None]:
    """What validation runs in, such as autocast."""
    return cast("AbstractContextManager[None]", trainer.precision_plugin.val_step_context())
