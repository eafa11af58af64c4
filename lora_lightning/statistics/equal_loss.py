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
) -> tuple[list[float], int]:
    """Compares a measurement at the lowest validation loss that both runs of a seed reach.

    Args:
        configuration: The one that is judged.
        reference: The one that it is compared with.
        name: A curve that was measured at each validation, such as `"other_text/all/loss"`.

    Returns:
        Configuration minus reference by ascending seed; and how many of the common seeds are left out, because a curve
        is missing, or a run was below that loss at its first validation, so that nobody knows when it reached it.
    """
    seeds = sorted(configuration.values.keys() & reference.values.keys())
    found = [_difference(configuration, reference, name, seed) for seed in seeds]
    known = [number for number in found if number is not None]
    return known, len(found) - len(known)


def _difference(
    configuration: "ConfigurationResults", reference: "ConfigurationResults", name: str, seed: int
) -> float | None:
    curves = [(each.curves.get(VALIDATION_LOSS, {}), each.curves.get(name, {})) for each in (configuration, reference)]
    if not all(seed in losses and seed in others for losses, others in curves):
        return None
    pairs = [_at_common_steps(losses[seed], others[seed]) for losses, others in curves]
    if not all(len(losses) for losses, _ in pairs):
        return None
    target = max(float(losses.min()) for losses, _ in pairs)
    first, second = (_when_reached(target, losses, others) for losses, others in pairs)
    return None if first is None or second is None else first - second


def _at_common_steps(losses: Curve, others: Curve) -> tuple[Curve, Curve]:
    """Two curves at the steps at which both are finite."""
    losses, others = (curve[:, np.isfinite(curve[1])] for curve in (losses, others))
    _, first, second = np.intersect1d(losses[0], others[0], return_indices=True)
    return losses[1][first], others[1][second]


def _when_reached(target: float, losses: Curve, others: Curve) -> float | None:
    """A measurement when the loss first falls to a target, by linear interpolation between validations."""
    reached = int(np.argmax(losses <= target))
    if losses[reached] == target:
        return float(others[reached])
    if reached == 0:
        return None  # it was already lower at the first validation
    share = (losses[reached - 1] - target) / (losses[reached - 1] - losses[reached])
    return float(others[reached - 1] + share * (others[reached] - others[reached - 1]))
