"""Early stopping that waits until a model may be exported."""

from typing import cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lora_lightning.tasks import AdaptationTask


class AdapterEarlyStopping(EarlyStopping):
    """Lightning's `EarlyStopping` over the validations that `best.ckpt` may come from: of AdaLoRA the last ones."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares."""
        if cast("AdaptationTask", pl_module).may_be_best:
            super().on_validation_end(trainer, pl_module)
