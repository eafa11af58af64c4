"""The times of a diagnosis that are of several devices: they say nothing about the precision."""

from collections.abc import Sequence

from lora_lightning.diagnosis.costs import INFERENCE, STEP, WALL
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.studies.costs_of_devices import devices_of_costs


def devices_of_times(runs: Sequence[FinishedRun]) -> dict[str, tuple[str, ...]]:
    """Finds the times that are of several devices.

    Args:
        runs: All finished runs of a diagnosis.

    Returns:
        By cost: names of the devices, of costs with several alone.
    """
    found = devices_of_costs([run.record for run in runs])
    return {cost: found[cost] for cost in (WALL, STEP, *INFERENCE) if cost in found}
