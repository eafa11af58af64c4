"""Intervals between validations: only a validation decides which checkpoint is the best one, so there must be one."""

import math
from datetime import timedelta
from typing import Any

from lightning import Trainer

from lora_lightning.errors import ConfigurationError

VALIDATE_OR_NOT = "to train without validation, set --trainer.limit_val_batches 0"


def check_validation_options(trainer: Any) -> None:
    """Refuses intervals between validations that are zero or negative, which Lightning divides by, or ignores.

    Args:
        trainer: Its options.

    Raises:
        ConfigurationError: If there is one.
    """
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if interval is not None and not _is_positive(interval):
        msg = (
            f"trainer.val_check_interval is {interval}, but a number of batches of at least 1, a share of an epoch in "
            f"(0.0, 1.0] or a time above 0 is needed; {VALIDATE_OR_NOT}."
        )
        raise ConfigurationError(msg)
    if epochs is not None and epochs < 1:
        msg = (
            f"trainer.check_val_every_n_epoch is {epochs}, but at least 1 epoch is needed, or null to count the "
            f"batches of val_check_interval across epochs; {VALIDATE_OR_NOT}."
        )
        raise ConfigurationError(msg)


def _is_positive(interval: Any) -> bool:
    """Whether an interval of Lightning is above 0: a number, `DD:HH:MM:SS`, or what `timedelta` takes."""
    if isinstance(interval, str):
        return not set(interval) <= set("0:")
    if isinstance(interval, int | float):
        return interval > 0
    return (interval if isinstance(interval, timedelta) else timedelta(**dict(interval))) > timedelta(0)


def check_that_validation_will_run(trainer: Trainer) -> None:
    """Refuses a schedule whose first validation would come after the last batch, as far as that is known.

    Args:
        trainer: Knows its batches, epochs and steps.

    Raises:
        ConfigurationError: If there would be no validation.
    """
    batches, every = trainer.num_training_batches, trainer.check_val_every_n_epoch
    epochs = math.inf if trainer.max_epochs in {None, -1} else trainer.max_epochs or 0
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if not 0 < batches < math.inf:
        return
    steps_in_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    begun = min(epochs, math.ceil(steps / steps_in_epoch)) if steps < math.inf else epochs
    if every is not None and 0 < begun < every:
        msg = (
            f"trainer.check_val_every_n_epoch is {every}, but training ends in epoch {begun}, so it would never "
            f"validate; set it to at most {begun}; {VALIDATE_OR_NOT}."
        )
        raise ConfigurationError(msg)
    interval = getattr(trainer, "val_check_interval", None)  # Lightning does not keep a time here
    ends_by_steps = steps <= epochs * steps_in_epoch  # the last step is validated
    if every is None and isinstance(interval, int) and not ends_by_steps and 0 < epochs * batches < interval:
        msg = (
            f"trainer.val_check_interval is {interval} batches, but training has {epochs * batches} "
            f"({epochs} epochs of {batches}), so it would never validate; set it to at most {epochs * batches}; "
            f"{VALIDATE_OR_NOT}."
        )
        raise ConfigurationError(msg)
