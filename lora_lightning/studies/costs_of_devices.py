"""On which devices runs were trained and timed: what is measured on several says nothing about configurations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_lightning.runs.devices import Device, device_names
from lora_lightning.runs.record import RunRecord
from lora_lightning.statistics.study_results import StudyResults
from lora_lightning.studies.same_inputs import Runs
from lora_lightning.studies.specification import COSTS
from lora_lightning.studies.trial_numbers import DEVICE, TIMINGS, trial_numbers

PEAK_MEMORY, STEP, WALL = "peak_memory_bytes", "seconds_per_step", "wall_seconds"
INFERENCE = tuple(cost for cost in COSTS if cost.startswith("inference_ms_"))


def devices_of_costs(records: Sequence[RunRecord]) -> dict[str, tuple[str, ...]]:
    """Finds the times and the memory that were measured on several devices.

    Args:
        records: Finished runs.

    Returns:
        By cost: names of the devices, of costs with several alone.
    """
    found: dict[str, list[Device]] = {cost: [] for cost in (PEAK_MEMORY, WALL, STEP, *INFERENCE)}
    for record in records:
        timed, measured = _timed(record), trial_numbers(record)
        for cost in found.keys() & measured.keys():  # a run in company lacks its times
            found[cost].append(_device(timed) if cost in timed else (record.device, record.device_name))
    return {cost: names for cost, devices in found.items() if len(names := device_names(devices)) > 1}


def comparable_costs(results: StudyResults, runs: Runs) -> tuple[StudyResults, str]:
    """Leaves out times and memory that were measured on several devices: fronts and means would be those of devices.

    Args:
        results: What a study measured.
        runs: Its finished runs.

    Returns:
        The results without them, and what to say about it; empty if nothing is left out. The cost that decides stays
        the first one, so that nothing is said to be cheaper.
    """
    measured = {name for each in results.configurations for name in each.measurements}
    found = devices_of_costs([record for _, record in runs])
    mixed = {name: devices for name, devices in found.items() if name in measured}
    if not mixed:
        return results, ""
    kept = [
        replace(each, measurements={name: own for name, own in each.measurements.items() if name not in mixed})
        for each in results.configurations
    ]
    costs = [*results.costs[:1], *(cost for cost in results.costs[1:] if cost not in mixed)]
    names = dict.fromkeys(name for devices in mixed.values() for name in devices)
    note = f"Costs that were measured on different devices ({', '.join(names)}) are not compared: {', '.join(mixed)}."
    return replace(results, configurations=kept, costs=costs), note


def _timed(record: RunRecord) -> Mapping[str, object]:
    """The content of the last pass; empty without one."""
    path = record.folder / TIMINGS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _device(timed: Mapping[str, object]) -> Device:
    kind, model = (None if timed.get(name) is None else str(timed[name]) for name in DEVICE)
    return kind, model
