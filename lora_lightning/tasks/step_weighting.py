"""Every example of an optimizer step has the same weight, whatever batches and processes the step is made of."""

from collections.abc import Iterable

import torch
from lightning import Trainer
from torch import Tensor, nn


class StepWeighting:
    """Counts the examples of an optimizer step and turns the gradient of their summed loss into that of their mean.

    A mean of the batches' means would give an example in a small batch more weight than one in a large batch, and
    neither the batches of several processes nor accumulated batches all have one size.
    """

    def __init__(self) -> None:
        self._examples = 0  # of this process, in the current step
        self._is_complete = False

    def add_batch(self, loss: Tensor, examples: int, batch_idx: int, trainer: Trainer) -> Tensor:
        """Counts a batch.

        Args:
            loss: Of the batch, summed over its examples, floating scalar.
            examples: How many examples the batch has.
            batch_idx: Number of the batch in its epoch.
            trainer: Knows how many batches a step accumulates, and which batch is the last.

        Returns:
            The loss for the backward pass.
        """
        accumulated = trainer.accumulate_grad_batches
        self._examples += examples
        is_last = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        self._is_complete = is_last or (batch_idx + 1) % accumulated == 0
        return loss * accumulated  # Lightning divides by it

    def divide_gradients(self, parameters: Iterable[nn.Parameter], trainer: Trainer, device: torch.device) -> None:
        """Divides the gradients by the examples of the step, once it is complete; collective.

        Args:
            parameters: Their gradients are the processes' mean of their sums so far.
            trainer: Knows the other processes.
            device: On which processes communicate.
        """
        if not self._is_complete:
            return
        examples = float(self._examples)
        if trainer.world_size > 1:  # a single process has nothing to wait for
            own = torch.tensor(examples, device=device)
            examples = float(trainer.strategy.reduce(own, reduce_op="sum"))
        self._examples = 0
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(trainer.world_size / examples)
