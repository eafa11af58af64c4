"""Ends the run of a search whose metric is worse than the median of the others."""

import math
from collections.abc import Callable

from lightning import Callback, LightningModule, Trainer

PRUNED = "pruned by the search"  # how the reason in the run's folder starts


class Pruning(Callback):
    """Reports the metric after each validation, and stops the run after its current step if it is hopeless.

    Args:
        tag: The metric on validation.
        report: Records a step and a value, and returns whether to stop.
    """

    def __init__(self, tag: str, report: Callable[[int, float], bool]) -> None:
        self.tag, self.report = tag, report
        self.reason_to_stop = ""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the metric."""
        del pl_module
        if trainer.sanity_checking or self.tag not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.tag])
        if math.isfinite(value) and self.report(trainer.global_step, value):
            self.reason_to_stop = (
                f"{PRUNED}: {self.tag} was {value:.4g} after {trainer.global_step} steps, and the best one so far is "
                "worse than the median of other runs"
            )
            trainer.should_stop = True
