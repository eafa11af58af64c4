"""How training ended: whether it took a step, and why it ended before its last epoch."""

import math

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lora_lightning.compat.lightning import batch_progress
from lora_lightning.errors import TrainingError
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.earlier_run import EarlierRun


def check_at_least_one_step(trainer: Trainer, earlier: EarlierRun | None = None) -> None:
    """Refuses a run that ended before its first optimizer step.

    Args:
        trainer: The trainer after training.
        earlier: The run from whose checkpoint this one started, if any; its steps do not count.

    Raises:
        TrainingError: If there was no step.
    """
    if trainer.global_step > (0 if earlier is None else earlier.steps):
        return
    more = "" if earlier is None else f" after the {earlier.steps} of {earlier.checkpoint}"
    why = early_end_reason(trainer) or f"trainer.max_epochs, max_steps and limit_train_batches allow no step{more}"
    msg = (
        f"training ended before its first optimizer step ({why}), so there is no trained model; raise the limit that "
        "ended it."
    )
    raise TrainingError(msg)


def early_end_reason(trainer: Trainer) -> str:
    """Returns why training ended before `max_epochs` or `max_steps`.

    Args:
        trainer: The trainer after training.

    Returns:
        A reason for the user, such as the `reason_to_stop` of a callback; empty if training took all of its steps.
    """
    for callback in trainer.early_stopping_callbacks:
        if (reason := _stopping_reason(callback)) is not None:
            return reason
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return f"trainer.max_time was reached after {trainer.global_step} steps"
    if trainer.should_stop and not _took_all_steps(trainer):
        reasons = [getattr(callback, "reason_to_stop", "") for callback in trainer.callbacks]  # type: ignore[attr-defined]
        if reason := next(filter(None, reasons), ""):
            return str(reason)
        return f"a callback set trainer.should_stop after {trainer.global_step} steps"
    return ""


def _took_all_steps(trainer: Trainer) -> bool:
    """Lightning also counts an epoch that a callback ended as completed."""
    is_last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
    return trainer.global_step == trainer.max_steps or (is_last_epoch and batch_progress(trainer).is_last_batch)


def no_best_reason(trainer: Trainer, checkpoint: AdapterCheckpoint) -> str:
    """Why no checkpoint of a run is its best one.

    Args:
        trainer: After training.
        checkpoint: Has no best checkpoint.

    Returns:
        In words.
    """
    if not trainer.enable_validation:
        return "there was no validation"
    if checkpoint.has_validated:
        return "no validation ran after the ranks of the adapters were final"
    return "training ended before its first validation (trainer.val_check_interval, trainer.check_val_every_n_epoch)"


def unvalidated_steps(trainer: Trainer, checkpoint: AdapterCheckpoint) -> str:
    """Says that training went on after its last validation, so that the best checkpoint cannot be its end.

    Args:
        trainer: After training.
        checkpoint: Knows the last validation.

    Returns:
        A clause; empty if the last step was validated, or if no validation decided which checkpoint is the best.
    """
    steps, validated = trainer.global_step, checkpoint.validated_step
    if not checkpoint.best_model_path or validated is None or steps <= validated:
        return ""
    return (
        f"the last {steps - validated} of {steps} steps were not validated, so only last.ckpt has them "
        "(trainer.val_check_interval, trainer.check_val_every_n_epoch)"
    )


def _stopping_reason(callback: EarlyStopping) -> str | None:
    """Lightning's own `stopped_epoch` is 0 for a stop in the first epoch, as for none."""
    value = float(callback.best_score)
    best = f", the best is {value:.4f}" if math.isfinite(value) else ""
    return {
        EarlyStoppingReason.PATIENCE_EXHAUSTED: (
            f"{callback.monitor} did not improve in {callback.patience} validations{best} (early_stopping.patience)"
        ),
        EarlyStoppingReason.STOPPING_THRESHOLD: (
            f"{callback.monitor} reached {callback.stopping_threshold} (early_stopping.stopping_threshold)"
        ),
        EarlyStoppingReason.DIVERGENCE_THRESHOLD: (
            f"{callback.monitor} became worse than {callback.divergence_threshold} "
            "(early_stopping.divergence_threshold)"
        ),
        EarlyStoppingReason.NON_FINITE_METRIC: f"{callback.monitor} was not finite (early_stopping.check_finite)",
    }.get(callback.stopping_reason)
