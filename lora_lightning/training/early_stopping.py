"""Early stopping that waits until AdaLoRA's ranks are final, and starts anew in a new run."""

from typing import cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from lora_lightning.tasks import AdaptationTask


class AdapterEarlyStopping(EarlyStopping):
    """Lightning's `EarlyStopping` on validations that may select `best.ckpt`: with AdaLoRA, only the last ones."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the metric if this validation may select the best checkpoint."""
        if cast("AdaptationTask", pl_module).may_be_best:
            super().on_validation_end(trainer, pl_module)


def restart_early_stopping(callback: EarlyStopping, worst: Tensor | None) -> None:
    """Lets training go on that had stopped, in a new run.

    Args:
        callback: With the state of the earlier run; changed in place.
        worst: The score before any validation, if those of the earlier run cannot be compared with those of the new
            one; `None` if they can.
    """
    if worst is not None:
        callback.best_score = worst
    if worst is not None or callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
        callback.wait_count = callback.stopped_epoch = 0
    callback.stopping_reason, callback.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
