"""On which devices runs were trained and timed: times of several devices say nothing about the precision."""

import json
from collections.abc import Mapping, Sequence

from lora_lightning.diagnosis.costs import INFERENCE, STEP, WALL
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.runs.devices import Device, device_names
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.trial_numbers import DEVICE, TIMINGS


def devices_of_times(runs: Sequence[FinishedRun]) -> dict[str, tuple[str, ...]]:
    """Finds the times that are of several devices.

    Args:
        runs: All finished runs of a diagnosis.

    Returns:
        By cost: names of the devices, of costs with several alone.
    """
    found: dict[str, list[Device]] = {WALL: [_trained_on(run.record) for run in runs], STEP: []}
    found |= {cost: [] for cost in INFERENCE}
    for run in runs:
        timed = _timed(run.record)
        found[STEP].append(_device(timed) if STEP in timed else _trained_on(run.record))
        for cost in INFERENCE:  # which training does not measure
            found[cost] += [_device(timed)] if cost in timed else []
    return {cost: names for cost, devices in found.items() if len(names := device_names(devices)) > 1}


def _trained_on(record: RunRecord) -> Device:
    return record.device, record.device_name


def _timed(record: RunRecord) -> Mapping[str, object]:
    """The content of the last pass; empty without one."""
    path = record.folder / TIMINGS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _device(timed: Mapping[str, object]) -> Device:
    kind, model = (None if timed.get(name) is None else str(timed[name]) for name in DEVICE)
    return kind, model
