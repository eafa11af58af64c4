"""A transformers.Trainer that records the end of every step."""

from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from peers.step_log import StepLog


class ClockedTrainer(Trainer):
    """Records each optimizer step; gradients must not be accumulated.

    Args:
        log: Gets the steps.
        options: Of `Trainer`.
    """

    def __init__(self, log: StepLog, **options: Any) -> None:
        super().__init__(**options)
        log.describe(self.model)
        self.step: tuple[Any, ...] = ()
        self.add_callback(_Clock(log, self))

    def training_step(self, model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        """Keeps the attention mask, the loss and the learnt labels of the batch."""
        loss = super().training_step(model, inputs, *more, **options)
        self.step = (mask_of(inputs), loss, learnt_labels(inputs))
        return loss


class _Clock(TrainerCallback):
    def __init__(self, log: StepLog, trainer: ClockedTrainer) -> None:
        self.log, self.trainer = log, trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.log.add(*self.trainer.step)


def mask_of(inputs: Any) -> Any:
    """The attention mask of a batch, (rows, tokens); all ones where texts follow each other without padding."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask


def learnt_labels(inputs: Any) -> Any:
    """The labels of a language model that take part in its loss, (rows, tokens - 1); `None` of other models."""
    labels = inputs.get("labels")
    return None if labels is None or labels.ndim == 1 else labels[:, 1:]
