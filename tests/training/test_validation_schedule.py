"""A schedule that never validates is refused exactly if a simulation of its batches finds no validation."""

import itertools
import math
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning import Trainer

from lora_lightning.errors import ConfigurationError
from lora_lightning.training.validation_schedule import check_that_validation_will_run, check_validation_options


def validates(trainer: SimpleNamespace) -> bool:
    """Counts batch by batch, as Lightning does; the last of `max_steps` is always validated in a due epoch."""
    every, interval, done = trainer.check_val_every_n_epoch, trainer.val_check_interval, 0
    for epoch in range(1, trainer.max_epochs + 1):
        due = every is None or epoch % every == 0
        for batch in range(1, trainer.num_training_batches + 1):
            done += 1
            steps = (epoch - 1) * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            steps += math.ceil(batch / trainer.accumulate_grad_batches)
            complete = batch % trainer.accumulate_grad_batches == 0 or batch == trainer.num_training_batches
            if due and (done if every is None else batch) % interval == 0:
                return True
            if complete and steps == trainer.max_steps:
                return due
    return False


def test_what_is_refused_is_what_never_validates() -> None:
    outcomes = []
    for batches, epochs, steps, accumulated, every, interval in itertools.product(
        (1, 3, 4), (1, 2, 5), (-1, 1, 3, 7, 99), (1, 2), (None, 1, 2, 6), (1, 3, 5, 8, 99)
    ):
        if every is not None and interval > batches:
            continue  # Lightning refuses it
        trainer = SimpleNamespace(
            num_training_batches=batches,
            max_epochs=epochs,
            max_steps=steps,
            accumulate_grad_batches=accumulated,
            check_val_every_n_epoch=every,
            val_check_interval=interval,
        )
        try:
            check_that_validation_will_run(cast("Trainer", trainer))
            outcomes.append(True)
        except ConfigurationError:
            outcomes.append(False)
        assert outcomes[-1] == validates(trainer), trainer
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.parametrize("unknown", [{"num_training_batches": math.inf}, {"max_epochs": -1}, {"max_epochs": None}])
def test_what_is_not_known_before_training_is_not_refused(unknown: dict[str, Any]) -> None:
    known = {"num_training_batches": 4, "max_epochs": 2, "max_steps": -1, "accumulate_grad_batches": 1}
    more = {"check_val_every_n_epoch": 9, "val_check_interval": 1.0}
    check_that_validation_will_run(cast("Trainer", SimpleNamespace(**{**known, **more, **unknown})))


@pytest.mark.parametrize(
    "interval", [0, 0.0, -0.0, "00:00:00:00", {"seconds": 0}, {"days": -1}, {"hours": 1, "days": -1}, timedelta(0)]
)
def test_an_interval_that_is_not_positive_is_refused(interval: Any) -> None:
    options = SimpleNamespace(val_check_interval=interval, check_val_every_n_epoch=1)
    with pytest.raises(ConfigurationError, match="a time above 0 is needed"):
        check_validation_options(options)


@pytest.mark.parametrize("epochs", [0, -1])
def test_less_than_one_epoch_between_validations_is_refused(epochs: int) -> None:
    with pytest.raises(ConfigurationError, match=f"check_val_every_n_epoch is {epochs}, but at least 1"):
        check_validation_options(SimpleNamespace(val_check_interval=None, check_val_every_n_epoch=epochs))


@pytest.mark.parametrize("interval", [None, 1, 0.5, 1.0, "00:00:00:01", {"seconds": 1}, timedelta(1), 99])
def test_other_intervals_are_taken(interval: Any) -> None:
    check_validation_options(SimpleNamespace(val_check_interval=interval, check_val_every_n_epoch=None))
