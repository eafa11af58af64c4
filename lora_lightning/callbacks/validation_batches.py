"""A few held-out batches, and what a state of the model says about them."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, cast

import torch
from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.runs.resources import time_when_idle
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
    """Some of this process's validation batches, spread evenly, on the host; made without its workers."""
    loaders = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
    if not loaders:
        return []
    loader = loaders[0] if isinstance(loaders, list) else loaders
    rows = list(loader.sampler)  # of whole batches
    wanted = torch.linspace(0, len(rows) - 1, min(count, len(rows)), dtype=torch.float64).round().long()
    return [loader.dataset[rows[number]] for number in wanted.tolist()]


@contextmanager
def undisturbed(task: AdaptationTask) -> Iterator[None]:
    """In evaluation mode without gradients; modes, metrics and random states are afterwards what they were."""
    metrics = task.metrics
    task.metrics = copy.deepcopy(metrics)
    try:
        # In-place changes of weights are not for inference mode, in which Lightning validates.
        with evaluating(task), isolate_rng(), torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        task.metrics = metrics


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode that it was in.

    Args:
        module: With everything inside.
    """
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def observe(trainer: Trainer, task: AdaptationTask, batches: list[Batch], *, with_metrics: bool = True) -> Observation:
    """Runs the model as it is over the batches; collective, for its metrics.

    Args:
        trainer: Knows devices and precision.
        task: In evaluation mode.
        batches: On the host.
        with_metrics: Whether to have the task's metrics too.

    Returns:
        What it says.
    """
    for module in task.metrics.modules():
        if isinstance(module, Metric):
            module.reset()
    split = first_split(task)
    outputs, seconds = [], 0.0
    with precision(trainer):
        task.evaluate(on_device(trainer, batches[-1]))  # warms up; the shortest of them
    for batch in batches:
        moved = on_device(trainer, batch)
        with precision(trainer):
            with stopwatch(task.device) as took:
                found = task.evaluate(moved)
                said = task.outputs(moved, found)
            if with_metrics:
                task.add_to_metrics(split, moved, found)
        seconds += took[0]
        outputs.append(Outputs(said.logits.cpu(), said.distribution, said.decisions.cpu()))
    broken = torch.tensor(any(bool(said.logits.isnan().any()) for said in outputs), dtype=torch.int64)
    broken = trainer.strategy.reduce(broken.to(task.device), reduce_op="max")
    metrics = {} if broken or not with_metrics else task.metric_values(split)  # no metric is made for NaN
    return Observation(outputs, metrics, seconds / len(batches))


def on_device(trainer: Trainer, batch: Batch) -> Batch:
    """A batch as the trainer hands it to a step."""
    moved: Batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
    return moved


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
