"""A few held-out batches, and the outputs of a state of the model for them."""

import copy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, cast

import torch
from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.runs.resources import synchronized_time
from lora_lightning.tasks import AdaptationTask

Batch = dict[str, Tensor]
CACHED = "next_token"  # the property of a language modeling task that holds its network


class Observation(NamedTuple):
    """The outputs of one state of the model for the held-out batches.

    Attributes:
        outputs: One a batch, on the host.
        metrics: Of the task, over the batches of all processes.
        seconds: Of a batch, on average.
    """

    outputs: list[Outputs]
    metrics: dict[str, float]
    seconds: float


def held_out_batches(trainer: Trainer, count: int) -> list[Batch]:
    """Some of this process's validation batches, spread evenly, on the host; collated without workers."""
    return some_batches(trainer.datamodule.val_dataloader(), count)  # type: ignore[attr-defined]


def validation_batches(trainer: Trainer) -> dict[str, list[Batch]]:
    """All validation batches of this process by split, in the order of the loaders, on the host."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    loaders = datamodule.val_dataloader()
    each = loaders if isinstance(loaders, list) else [loaders]
    splits = datamodule.split_names("val")
    return {split: some_batches(loader, sys.maxsize) for split, loader in zip(splits, each, strict=True)}


def some_batches(loaders: Any, count: int) -> list[Batch]:
    """Some batches of the first loader, spread evenly, on the host; collated without workers.

    Args:
        loaders: A data module's loader, or a list of them.
        count: How many at most.

    Returns:
        The batches; empty without a loader.
    """
    if not loaders:
        return []
    loader = loaders[0] if isinstance(loaders, list) else loaders
    rows = list(loader.sampler)  # of whole batches
    wanted = torch.linspace(0, len(rows) - 1, min(count, len(rows)), dtype=torch.float64).round().long()
    return [loader.dataset[rows[number]] for number in wanted.tolist()]


def split_rows(batches: list[Batch], count: int) -> list[Batch]:
    """Cuts batches into pieces, so that there are at least as many as asked for, rows allowing.

    Args:
        batches: Tensors with the same first axis each.
        count: Of pieces.

    Returns:
        The batches themselves if there are enough.
    """
    if not batches or len(batches) >= count:
        return batches
    each = -(-count // len(batches))
    pieces = []
    for batch in batches:
        rows = len(next(iter(batch.values())))
        size = max(1, rows // each)
        starts = range(0, rows, size)
        pieces += [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in starts]
    return pieces


@contextmanager
def network_replaced(task: AdaptationTask, network: nn.Module) -> Iterator[None]:
    """Runs the task on another model.

    Args:
        task: In evaluation mode.
        network: In evaluation mode, on the task's device.

    Yields:
        Nothing; the task has the other model.
    """
    former, cached = task.network, task.__dict__.pop(CACHED, None)
    task.network = network
    try:
        yield
    finally:
        task.network = former
        task.__dict__.pop(CACHED, None)
        if cached is not None:
            task.__dict__[CACHED] = cached


@contextmanager
def isolated_evaluation(task: AdaptationTask) -> Iterator[None]:
    """Evaluation mode without gradients; restores modes, metrics and random states."""
    metrics = task.metrics
    task.metrics = copy.deepcopy(metrics)
    try:
        # In-place changes of weights are not for inference mode, in which Lightning validates.
        with evaluation_mode(task), isolate_rng(), torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        task.metrics = metrics


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; restores each module's own mode.

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


def run_batches(
    trainer: Trainer, task: AdaptationTask, batches: list[Batch], *, with_metrics: bool = True
) -> Observation:
    """Runs the model as it is over the batches; collective, for its metrics.

    Args:
        trainer: Knows devices and precision.
        task: In evaluation mode.
        batches: On the host.
        with_metrics: Whether to have the task's metrics too.

    Returns:
        Outputs, metrics and time.
    """
    reset_metrics(task.metrics)
    split = first_validation_split(task)
    collected: list[Outputs] = []
    seconds = 0.0
    with validation_precision(trainer):
        task.evaluate(on_device(trainer, batches[-1]))  # warms up; the shortest of them
    for batch in batches:
        moved = on_device(trainer, batch)
        with validation_precision(trainer):
            with stopwatch(task.device) as took:
                found = task.evaluate(moved)
                outputs = task.outputs(moved, found)
            if with_metrics:
                task.add_to_metrics(split, moved, found)
        seconds += took[0]
        collected.append(outputs.on_host())
    broken = torch.tensor(any(bool(outputs.logits.isnan().any()) for outputs in collected), dtype=torch.int64)
    broken = trainer.strategy.reduce(broken.to(task.device), reduce_op="max")
    metrics = {} if broken or not with_metrics else task.metric_values(split)  # no metric is made for NaN
    return Observation(collected, metrics, seconds / len(batches))


def reset_metrics(metrics: nn.Module) -> None:
    """Forgets the batches that metrics have seen.

    Args:
        metrics: With metrics anywhere inside; changed in place.
    """
    for module in metrics.modules():
        if isinstance(module, Metric):
            module.reset()


def on_device(trainer: Trainer, batch: Batch) -> Batch:
    """A batch as the trainer gives it to a step, where the model is: after training that may be the host."""
    device = trainer.lightning_module.device
    moved: Batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), device)
    return moved


@contextmanager
def stopwatch(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that holds the seconds of the block afterwards; waits for a GPU before and after."""
    took = [0.0]
    start = synchronized_time(device)
    yield took
    took[0] = synchronized_time(device) - start


def first_validation_split(task: AdaptationTask) -> str:
    """The name of the first validation loader's split."""
    splits: list[str] = getattr(task, "scored_splits", ["val"])
    return splits[0]


def validation_precision(trainer: Trainer) -> AbstractContextManager[None]:
    """The context of a validation step, such as autocast."""
    return cast("AbstractContextManager[None]", trainer.precision_plugin.val_step_context())
