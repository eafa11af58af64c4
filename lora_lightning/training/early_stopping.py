"""Early stopping that waits until AdaLoRA's ranks are final."""

from typing import cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lora_lightning.tasks import AdaptationTask


class AdapterEarlyStopping(EarlyStopping):
    """Lightning's `EarlyStopping` on validations that may select `best.ckpt`: with AdaLoRA, only the last ones."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the metric if this validation may select the best checkpoint."""
        if cast("AdaptationTask", pl_module).may_be_best:
            super().on_validation_end(trainer, pl_module)
