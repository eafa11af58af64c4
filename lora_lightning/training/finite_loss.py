"""Stops training if the loss or a validation metric is NaN or infinite, and names a checkpoint with finite weights."""

import math
from collections.abc import Mapping
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lora_lightning.errors import CheckpointError, TrainingError
from lora_lightning.runs.checkpoint import read_checkpoint

REMEDY = "Lower model.optimization.learning_rate, set --trainer.gradient_clip_val 1.0, or use more precision."


class FiniteLoss(Callback):
    """Stops before a NaN or infinite loss reaches the weights, and before NaN metrics reach a checkpoint."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Checks every loss before the backward pass.

        Raises:
            TrainingError: If the loss is NaN or infinite.
        """
        del pl_module
        if loss.isfinite():
            return
        msg = (
            f"the training loss became {float(loss.detach())} at step {trainer.global_step} "
            f"(epoch {trainer.current_epoch}); {name_finite_checkpoint(trainer)} {REMEDY}"
        )
        raise TrainingError(msg)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the validation losses and the monitored metric before the best checkpoint is written.

        Raises:
            TrainingError: If one of them is NaN or infinite.
        """
        del pl_module
        if trainer.sanity_checking:
            return
        decisive = {getattr(callback, "monitor", None) for callback in trainer.checkpoint_callbacks}
        for name, value in trainer.callback_metrics.items():
            is_loss = name.startswith("val") and name.endswith("/loss")
            if (is_loss or name in decisive) and not value.isfinite():
                msg = (
                    f"{name} became {float(value)} in the validation after step {trainer.global_step}; "
                    f"{name_finite_checkpoint(trainer)} {REMEDY}"
                )
                raise TrainingError(msg)


def check_finite_losses(metrics: Mapping[str, float], checkpoint: str) -> None:
    """Refuses metrics of a checkpoint that cannot be used: numbers that are not finite would look like results.

    Args:
        metrics: By tag, such as `test/loss`.
        checkpoint: The path of what was evaluated.

    Raises:
        TrainingError: If a loss is NaN or infinite.
    """
    for name, value in metrics.items():
        if name.endswith("/loss") and not math.isfinite(value):
            msg = (
                f"{name} of {checkpoint} is {value}: the model computes numbers that are not finite on this data; "
                "evaluate it with more precision (trainer.precision), or look for such numbers in the data."
            )
            raise TrainingError(msg)


def name_finite_checkpoint(trainer: Trainer) -> str:
    """Names the newest checkpoint whose weights are all finite. The file is read to check this.

    Args:
        trainer: The trainer, for its checkpoint callbacks.

    Returns:
        A sentence for an error message.
    """
    for callback in trainer.checkpoint_callbacks:
        for attribute in ("last_model_path", "best_model_path"):
            path = getattr(callback, attribute, "")
            if path and _is_finite(Path(path)):
                return f"the last good checkpoint is {path}."
    return "no checkpoint with finite weights has been saved yet."


def _is_finite(path: Path) -> bool:
    try:
        read_checkpoint(path)  # which refuses numbers that are not finite
    except CheckpointError:
        return False
    return True
