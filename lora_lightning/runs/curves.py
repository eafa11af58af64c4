"""Curves over a run, read from what its loggers left: TensorBoard's event files or `CSVLogger`'s tables."""

import csv
from pathlib import Path
from typing import NamedTuple

from lora_lightning.runs.layout import EVENTS


class Curve(NamedTuple):
    """One logged number over training.

    Attributes:
        steps: Optimizer steps, ascending.
        values: As many.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curves(run: Path) -> dict[str, Curve]:
    """Reads all curves of a run.

    Args:
        run: The run's folder.

    Returns:
        By tag, such as `train/loss`; from event files if there are any, else from `metrics*.csv`. A step that was
        logged twice, as by a run that was resumed, has the value that was logged last.
    """
    points = _from_events(run) or _from_tables(run)
    curves = {}
    for tag, found in sorted(points.items()):
        steps = sorted(found)
        curves[tag] = Curve(tuple(steps), tuple(found[step] for step in steps))
    return curves


def _from_events(run: Path) -> dict[str, dict[int, float]]:
    files = sorted(run.glob(EVENTS))
    if not files:
        return {}
    # Imported late: it takes half a second.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    points: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return points


def _from_tables(run: Path) -> dict[str, dict[int, float]]:
    points: dict[str, dict[int, float]] = {}
    numbered = sorted(run.glob("metrics.*.csv"), key=lambda path: path.stem)  # of sessions that were resumed
    for file in [*numbered, run / "metrics.csv"]:
        if not file.is_file():
            continue
        with file.open(encoding="utf-8", newline="") as opened:
            for row in csv.DictReader(opened):
                step = int(row.pop("step"))
                for tag, text in row.items():
                    if text:
                        points.setdefault(tag, {})[step] = float(text)
    return points
