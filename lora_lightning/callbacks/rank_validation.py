"""Validates an adapter against a constant answer, and after truncation to a lower rank, for the advice about r."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning import Trainer

from lora_lightning.analysis.rank_advice import Validation
from lora_lightning.lora.sharding import is_sharded
from lora_lightning.lora.truncation import truncated_adapters
from lora_lightning.metrics.direction import LOWER_IS_BETTER
from lora_lightning.statistics import Interval, jackknife_interval
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.held_out_batches import (
    Batch,
    first_validation_split,
    held_out_batches,
    isolated_evaluation,
    on_device,
    reset_metrics,
    split_rows,
    validation_precision,
)

BATCHES = 64  # at most, spread over the validation split
GROUPS = 10  # of the examples, whose metrics show how certain a difference is
Answer = Callable[[Batch], Any]  # what `AdaptationTask.add_to_metrics` takes, for a batch


def validate_rank(trainer: Trainer, task: AdaptationTask, r: int | None) -> Validation | None:
    """Validates an adapter, its truncation, and the best constant answer on the same examples; collective.

    Args:
        trainer: Knows the monitored metric, the data and the processes.
        task: With the weights in question.
        r: The rank to truncate to; `None` for none.

    Returns:
        What was found; `None` without validation examples, or if the monitored metric has no value on them.
    """
    batches = held_out_batches(trainer, BATCHES)
    pieces = split_rows(batches, GROUPS)
    groups = int(trainer.strategy.reduce(torch.tensor(min(GROUPS, len(pieces)), device=task.device), reduce_op="min"))
    if not groups:
        return None
    with isolated_evaluation(task):
        name, sign = monitored_metric(trainer, task)
        constant = metric_by_group(trainer, task, pieces, groups, name, task.constant_answer(batches))
        as_it_is = metric_by_group(trainer, task, pieces, groups, name, task.evaluate)
        truncated = None
        if r is not None and not is_sharded(task.built_network):
            with truncated_adapters(task, r):
                truncated = metric_by_group(trainer, task, pieces, groups, name, task.evaluate)
    if math.isnan(as_it_is[0]):
        return None
    rows = torch.tensor(sum(len(next(iter(batch.values()))) for batch in batches), device=task.device)
    gain = paired_difference(as_it_is[1], constant[1], sign)
    found = Validation(
        metric=f"{first_validation_split(task)}/{name}",
        value=as_it_is[0],
        constant=0.0 if math.isnan(constant[0]) else constant[0],
        is_better=gain.low > 0,
        examples=int(trainer.strategy.reduce(rows, reduce_op="sum")),
    )
    if truncated is None:
        return found
    loss = paired_difference(truncated[1], as_it_is[1], sign)
    return Validation(**{**vars(found), "r": r, "truncated": truncated[0], "is_worse": loss.high < 0})


def monitored_metric(trainer: Trainer, task: AdaptationTask) -> tuple[str, int]:
    """The metric that decides which checkpoint is best.

    Args:
        trainer: With its checkpoint callbacks.
        task: Whose metrics count.

    Returns:
        Its name without the split, `loss` if none is monitored; and 1 if higher is better, else -1.
    """
    for callback in trainer.checkpoint_callbacks:
        name = str(getattr(callback, "monitor", None) or "").partition("/")[2]
        if name in task.metric_names():
            return name, 1 if getattr(callback, "mode", "min") == "max" else -1
    return "loss", -1 if "loss" in LOWER_IS_BETTER else 1


def metric_by_group(
    trainer: Trainer, task: AdaptationTask, pieces: list[Batch], groups: int, name: str, answer: Answer
) -> tuple[float, list[float]]:
    """A metric over all examples, and over each group of them; collective.

    Args:
        trainer: Knows devices and precision.
        task: In evaluation mode.
        pieces: Every `groups`-th belongs to the same group.
        groups: How many there are.
        name: The metric's.
        answer: Of the task.

    Returns:
        Both; NaN if the metric has no value for these examples.
    """
    split, by_group = first_validation_split(task), []
    reset_metrics(task.metrics)
    of_group, overall = task.metrics, copy.deepcopy(task.metrics)
    for group in range(groups):
        task.metrics = of_group
        reset_metrics(of_group)
        own = pieces[group::groups]
        most = trainer.strategy.reduce(torch.tensor(len(own), device=task.device), reduce_op="max")
        for number in range(int(most)):
            # A pass of a sharded model is collective: a process with fewer pieces repeats one, which does not count.
            moved = on_device(trainer, own[min(number, len(own) - 1)])
            with validation_precision(trainer):
                found = answer(moved)
                for metrics in (overall, of_group) if number < len(own) else ():
                    task.metrics = metrics
                    task.add_to_metrics(split, moved, found)
        by_group.append(task.metric_values(split).get(name, math.nan))
    task.metrics = overall
    return task.metric_values(split).get(name, math.nan), by_group


def paired_difference(first: list[float], second: list[float], sign: int) -> Interval:
    """How much better one state is than another, group by group.

    Args:
        first: A metric of one state by group.
        second: Of the other; NaN, such as the correlation of a constant, counts as 0.
        sign: 1 if higher is better, else -1.

    Returns:
        The mean difference and the interval of Student's t over the groups in which the first has a value.
    """
    differences = np.array([sign * (a - (0.0 if math.isnan(b) else b)) for a, b in zip(first, second, strict=True)])
    kept = differences[np.isfinite(differences)]
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan)
    without_one = (kept.sum() - kept) / max(len(kept) - 1, 1)
    return jackknife_interval(float(kept.mean()), without_one)
