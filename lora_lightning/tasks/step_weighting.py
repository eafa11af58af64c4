"""Every example of an optimizer step has the same weight, whatever batches and processes the step is made of."""

import math
from collections.abc import Iterable
from typing import cast

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn


def loss_scale(trainer: Trainer) -> float:
    """What `16-mixed` multiplies the loss with before the backward pass; 1 in other precisions.

    Args:
        trainer: An optimizer step that lowers its scale was skipped, because gradients were infinite.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _lower_loss_scale(trainer: Trainer, examples: float) -> None:
    """Divides the scale with which `16-mixed` starts, which is meant for a mean, by about the first batch's examples.

    With a sum gradients would be infinite in the first steps, which are then skipped. A power of 2 rounds nothing; the
    scale of the main process is that of all, since they add their scaled gradients.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return
    size = trainer.strategy.broadcast(2.0 ** round(math.log2(max(examples, 1))))
    scaler.load_state_dict({**scaler.state_dict(), "scale": scaler.get_scale() / size})


class StepWeighting:
    """Counts the examples of an optimizer step and turns the gradient of their summed loss into that of their mean.

    A mean of the batches' means would give an example in a small batch more weight than one in a large batch, and
    neither the batches of several processes nor accumulated batches all have one size.
    """

    def __init__(self) -> None:
        self._examples = 0.0  # of this process, in the current step
        self._loss = torch.zeros(())  # summed over these examples
        self._is_complete = False
        self._scale = 0, 1.0  # of the loss in the last step, and whose it is

    def add_batch(self, loss: Tensor, examples: float, batch_idx: int, trainer: Trainer) -> Tensor:
        """Counts a batch.

        Args:
            loss: Of the batch, summed over its examples, floating scalar.
            examples: How many examples the batch has; if they have weights, the sum of these.
            batch_idx: Number of the batch in its epoch.
            trainer: Knows how many batches a step accumulates, and which batch is the last.

        Returns:
            The loss for the backward pass.
        """
        accumulated = trainer.accumulate_grad_batches
        if batch_idx == 0 and trainer.global_step == 0:
            _lower_loss_scale(trainer, examples)
        if batch_idx % accumulated == 0:  # Lightning zeroes gradients; an earlier training may have stopped halfway
            self._examples, self._loss = 0.0, torch.zeros(())
        self._examples += examples
        self._loss = self._loss.to(loss.device) + loss.detach().float()
        is_last = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        self._is_complete = is_last or (batch_idx + 1) % accumulated == 0
        return loss * accumulated  # Lightning divides by it

    def divide_gradients(self, parameters: Iterable[nn.Parameter], trainer: Trainer) -> Tensor | None:
        """Divides the gradients by the examples of the step, once it is complete; collective.

        Args:
            parameters: Their gradients are the processes' mean of their sums so far.
            trainer: Knows the other processes.

        Returns:
            The mean loss of all examples of the step, of all processes, float32 scalar; `None` if it is not complete.
        """
        if not self._is_complete:
            return None
        self._warn_of_skipped_step(trainer)
        examples, loss = self._examples, self._loss
        if trainer.world_size > 1:  # a single process has nothing to wait for
            own = torch.stack([torch.tensor(examples, device=loss.device, dtype=torch.float32), loss])
            total = cast("Tensor", trainer.strategy.reduce(own, reduce_op="sum"))
            examples, loss = float(total[0]), total[1]
        self._examples, self._loss = 0.0, torch.zeros(())
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(trainer.world_size / examples)
        return loss / examples

    def _warn_of_skipped_step(self, trainer: Trainer) -> None:
        """Says once, at the step after it, that `16-mixed` skipped one."""
        scaler, before = self._scale
        self._scale = id(getattr(trainer.precision_plugin, "scaler", None)), loss_scale(trainer)
        if self._scale[0] == scaler and self._scale[1] < before:
            rank_zero_warn(
                "trainer.precision 16-mixed skipped an optimizer step, because gradients were infinite in float16; it "
                "counts as a step. Now and then that is normal; bf16-mixed skips none."
            )
