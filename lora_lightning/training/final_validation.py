"""A run validates, and does so at its last step, too."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from lora_lightning.training.validation_schedule import check_that_validation_will_run


class FinalValidation(Callback):
    """Validates when `trainer.max_steps` is reached; Lightning itself would end without a metric or a best epoch.

    A run that would end without any validation, although there is data for it, is refused before its first step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks when validation will run; a resumed run may have validated before.

        Raises:
            ConfigurationError: If it would never run.
        """
        del pl_module
        if trainer.enable_validation and trainer.global_step == 0:
            check_that_validation_will_run(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sets `should_stop`, which makes the trainer validate before it stops."""
        del pl_module, outputs, batch, batch_idx
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
