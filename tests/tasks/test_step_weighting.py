"""Gradients are those of the mean over a step's examples, whatever came before."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lora_lightning.tasks.step_weighting import StepWeighting


def trainer(accumulated: int) -> Any:
    """What the weighting asks of a trainer with one process, far from its first and last batch."""
    return SimpleNamespace(
        accumulate_grad_batches=accumulated,
        is_last_batch=False,
        num_training_batches=10,
        world_size=1,
        global_step=0,
        precision_plugin=None,
    )


def test_a_training_that_stopped_between_accumulated_batches_leaves_nothing_to_the_next() -> None:
    weighting, parameter = StepWeighting(), nn.Parameter(torch.zeros(()))
    weighting.add_batch(torch.tensor(60.0), 30, 0, trainer(2))
    assert weighting.divide_gradients([parameter], trainer(2)) is None
    weighting.add_batch(torch.tensor(8.0), 4, 0, trainer(1))
    parameter.grad = torch.tensor(8.0)
    assert weighting.divide_gradients([parameter], trainer(1)) == 2.0
    assert parameter.grad == 2.0


def test_accumulated_batches_count_by_their_examples() -> None:
    weighting, parameter = StepWeighting(), nn.Parameter(torch.zeros(()))
    for number, (loss, examples) in enumerate([(6.0, 1), (2.0, 3)]):
        scaled = weighting.add_batch(torch.tensor(loss), examples, number, trainer(2))
        assert scaled == 2 * loss
    parameter.grad = torch.tensor(8.0)
    assert weighting.divide_gradients([parameter], trainer(2)) == 2.0
    assert parameter.grad == 2.0
