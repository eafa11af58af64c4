"""How many tokens a second training takes in."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class TokenThroughput(Callback):
    """Logs `train/tokens_per_second`: tokens without padding, of all processes, on average since the second step.

    Loading batches counts, validation and checkpoints do not.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._since: float | None = None  # unknown before the first step, and after anything but a step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        del trainer, pl_module
        self._since = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock: the end of the last epoch was no training."""
        del trainer, pl_module
        self._since = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Counts a batch; the first one after a pause only starts the clock."""
        del outputs, batch_idx
        tokens = int(batch["attention_mask"].sum())  # waits for a GPU, so that the time below is the step's
        now = time.perf_counter()
        if self._since is not None:
            self.tokens += tokens
            self.seconds += now - self._since
            pl_module.log("train/tokens_per_second", trainer.world_size * self.tokens / self.seconds)
        self._since = now
