"""All numbers that a finished trial has beside the metric that decides: sizes, costs, ranks and metrics."""

import json
import math
from pathlib import Path

from lora_lightning.errors import DataError
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.adapter_ranks import RANKS
from lora_lightning.studies.trial_measurements import COSTS

TIMINGS = "timings.json"  # of the last pass
DEVICE = ("device", "device_name")  # texts in it, which are no numbers


def trial_numbers(record: RunRecord) -> dict[str, float]:
    """Collects the numbers of a finished trial.

    Args:
        record: Its run.

    Returns:
        By name: parameters, costs in bytes and seconds, ranks of the adapter, and the metrics of each split, such as
        `val/loss`. What was not measured is left out, and so are numbers that are not finite.

    Raises:
        DataError: If a file is damaged.
    """
    sizes = {
        "trainable_parameters": record.trainable_parameters,
        "total_parameters": record.total_parameters,
        "trainable_share": record.trainable_share,
    }
    numbers = {name: float(size) for name, size in sizes.items() if size is not None}
    for name in (COSTS, RANKS, TIMINGS):  # the last pass replaces times that were measured while training
        numbers |= read_numbers(record.folder / name)
    numbers |= {tag: value for tag, value in record.flat_metrics.items() if tag.count("/") == 1}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def read_numbers(path: Path) -> dict[str, float]:
    """Reads numbers that a callback wrote into a run folder.

    Args:
        path: A JSON file with one object.

    Returns:
        Numbers by name; empty if there is no file.

    Raises:
        DataError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in content.items() if name not in DEVICE}
    except (ValueError, AttributeError, TypeError) as error:
        msg = f"{path} is damaged ({error}); delete the run folder, and run the study again"
        raise DataError(msg) from error
