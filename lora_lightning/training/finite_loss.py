"""Stop when the loss is not a number any more, and say what is still good."""

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lora_lightning.errors import TrainingError


class FiniteLoss(Callback):
    """Stops before a NaN or infinite loss reaches the weights, naming the step and the last good checkpoint."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Checks every loss before its gradients exist.

        Raises:
            TrainingError: If the loss is NaN or infinite.
        """
        del pl_module
        if loss.isfinite():
            return
        msg = (
            f"the training loss became {float(loss.detach())} at step {trainer.global_step} "
            f"(epoch {trainer.current_epoch}); {_last_good(trainer)} "
            "Lower model.optimization.learning_rate or set --trainer.gradient_clip_val 1.0."
        )
        raise TrainingError(msg)


def _last_good(trainer: Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if path:
            return f"the last good checkpoint is {path}."
    return "no checkpoint had been saved yet."
