"""Compares a measurement of two trainings when their validation losses are equal, and not after equally many steps."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lora_lightning.statistics.study_results import ConfigurationResults

VALIDATION_LOSS = "val/loss"
Curve = NDArray[np.float64]


def differences_at_equal_loss(
    configuration: "ConfigurationResults", reference: "ConfigurationResults", name: str
) -> list[float]:
    """Compares a measurement at the lowest validation loss that both runs of a seed reach.

    Args:
        configuration: The one that is judged.
        reference: The one that it is compared with.
        name: A curve that was measured at each validation, such as `"val/other_text_loss"`.

    Returns:
        Configuration minus reference, for each seed with which both have the curves, by ascending seed.
    """
    found = []
    for seed in sorted(configuration.values.keys() & reference.values.keys()):
        curves = [
            (each.curves.get(VALIDATION_LOSS, {}), each.curves.get(name, {})) for each in (configuration, reference)
        ]
        if all(seed in losses and seed in others for losses, others in curves):
            pairs = [_at_common_steps(losses[seed], others[seed]) for losses, others in curves]
            target = max(float(losses.min()) for losses, _ in pairs)
            first, second = (_when_reached(target, losses, others) for losses, others in pairs)
            found.append(first - second)
    return found


def _at_common_steps(losses: Curve, others: Curve) -> tuple[Curve, Curve]:
    """Two curves at the steps that both have."""
    _, first, second = np.intersect1d(losses[0], others[0], return_indices=True)
    return losses[1][first], others[1][second]


def _when_reached(target: float, losses: Curve, others: Curve) -> float:
    """A measurement when the loss first falls to a target, by linear interpolation between validations."""
    reached = int(np.argmax(losses <= target))
    if reached == 0 or losses[reached] == target:
        return float(others[reached])
    share = (losses[reached - 1] - target) / (losses[reached - 1] - losses[reached])
    return float(others[reached - 1] + share * (others[reached] - others[reached - 1]))
