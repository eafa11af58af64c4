"""A Lightning callback that records steps as the peers do; `fit` and `predict` take it as `--trainer.callbacks+=`."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from peers.step_log import StepLog

SCORES = {"val/loss": "validation_loss", "val/in_scope_accuracy": "in_scope_accuracy"}  # and their names in the log


class StepClock(Callback):
    """Records the end of every training step, the last validation, and the versions of what computed them.

    Args:
        quality: Least validation accuracy on in-scope queries at which the training stops, in [0, 1]; `None` for none.
    """

    def __init__(self, quality: float | None = None) -> None:
        self.quality, self.steps = quality, StepLog(summed=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts what is trained."""
        del trainer
        self.steps.describe(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records a step."""
        del trainer, pl_module, batch_idx
        self.steps.add(batch["attention_mask"], outputs["loss"], batch.get("labels"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the scores; stops once the quality is reached, and records when that was."""
        del pl_module
        if trainer.sanity_checking:
            return
        found = trainer.callback_metrics
        self.steps.more |= {name: float(found[metric]) for metric, name in SCORES.items() if metric in found}
        if self.quality is None or "reached" in self.steps.more:
            return
        if self.steps.more["in_scope_accuracy"] >= self.quality:
            self.steps.more["reached"] = time.time()
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was recorded."""
        del trainer, pl_module
        self.steps.write()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the versions."""
        del trainer, pl_module
        self.steps.write()
