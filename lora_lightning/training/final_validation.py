"""Validation at the last step, also where that is in the middle of an epoch."""

from typing import Any

from lightning import Callback, LightningModule, Trainer


class FinalValidation(Callback):
    """Validates when `trainer.max_steps` is reached; Lightning itself would end without a metric or a best epoch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Asks the trainer to stop by itself, upon which it validates first."""
        del pl_module, outputs, batch, batch_idx
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
