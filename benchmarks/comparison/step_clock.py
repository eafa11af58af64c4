"""A Lightning callback that records steps as the peers do; `fit` and `predict` take it as `--trainer.callbacks+=`."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from peers.step_log import StepLog


class StepClock(Callback):
    """Records the end of every training step, or of every batch of a prediction.

    Args:
        quality: Least validation accuracy on in-scope queries at which the training stops, in [0, 1]; `None` for none.
    """

    def __init__(self, quality: float | None = None) -> None:
        self.quality, self.steps = quality, StepLog()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records a step."""
        del trainer, pl_module, outputs, batch_idx
        self.steps.add(batch["attention_mask"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops once the quality is reached, and records when that was."""
        del pl_module
        if self.quality is None or trainer.sanity_checking or "reached" in self.steps.more:
            return
        if float(trainer.callback_metrics["val/in_scope_accuracy"]) >= self.quality:
            self.steps.more["reached"] = time.time()
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was recorded."""
        del trainer, pl_module
        self.steps.write()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Records a batch."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        self.steps.add(batch["attention_mask"])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was recorded."""
        del trainer, pl_module
        self.steps.write()
