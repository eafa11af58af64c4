"""A transformers.Trainer that records the end of every step."""

from typing import Any

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
        self.mask: Any = None
        self.add_callback(_Clock(log, self))

    def training_step(self, model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        """Keeps the attention mask of the batch."""
        self.mask = inputs["attention_mask"]
        return super().training_step(model, inputs, *more, **options)


class _Clock(TrainerCallback):
    def __init__(self, log: StepLog, trainer: ClockedTrainer) -> None:
        self.log, self.trainer = log, trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.log.add(self.trainer.mask)
