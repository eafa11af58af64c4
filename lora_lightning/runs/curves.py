"""Reads the curves of a run from the files of its loggers: TensorBoard's event files or `CSVLogger`'s tables.

Their names are today's, whichever release logged them.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from lora_lightning.runs.layout import EVENTS, HPARAMS_SUFFIX

RESULTS = "with_best"  # first part of the tags of a run's results, which are those of its best checkpoint
FORMER_TAGS = {  # names that older releases logged
    "lora_adapters": "weights/norms",
    "lora_rank": "weights/rank",
    "representation_drift": "weights/drift",
    "intruder_dimensions": "weights/intruders",
    "verification": "verification",
    "efficiency": "efficiency",
}


class Curve(NamedTuple):
    """One logged number over training.

    Attributes:
        steps: Optimizer steps, ascending.
        values: One value per step.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curves(run: Path) -> dict[str, Curve]:
    """Reads all curves of a run.

    Args:
        run: The run folder.

    Returns:
        Curves by tag, such as `train/loss`. If a step was logged twice, as after resuming from an older checkpoint,
        the last value counts.
    """
    curves = {}
    for tag, points in sorted(logged_points(run).items()):
        last = dict(points)
        steps = sorted(last)
        curves[tag] = Curve(tuple(steps), tuple(last[step] for step in steps))
    return curves


def logged_points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads everything that was logged, in the order of logging.

    Args:
        run: The run folder.

    Returns:
        Steps and values by tag, from event files if there are any, otherwise from `metrics*.csv`.
    """
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for tag, logged in (_from_events(run) or _from_tables(run)).items():
        if (name := curve_name(tag)) is not None:
            points[name] += logged
    return dict(points)


def curve_name(tag: str) -> str | None:
    """Returns the name of the curve that was logged under a tag.

    Args:
        tag: Such as `lora_rank/all/effective_rank`, which an older release logged.

    Returns:
        Such as `weights/rank/effective_rank`; `None` for a result of the run that is no curve. TensorBoard has the
        metrics of the test among the results alone.
    """
    first, _, rest = tag.partition("/")
    if first == RESULTS:
        return rest if rest.startswith("test") else None
    if first not in FORMER_TAGS:
        return tag
    return f"{FORMER_TAGS[first]}/{rest.removeprefix('all/')}"


def _from_events(run: Path) -> dict[str, list[tuple[int, float]]]:
    logged = [path for path in run.glob(EVENTS) if path.suffix != HPARAMS_SUFFIX]
    files = sorted(logged, key=lambda path: path.stat().st_mtime)
    if not files:
        return {}
    # Imported late: it takes half a second.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points[tag] += [(event.step, event.value) for event in events.Scalars(tag)]
    return dict(points)


def _from_tables(run: Path) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    former = sorted(run.glob("metrics.*.csv"), key=lambda path: int(path.stem.rpartition(".")[2]))  # before a resume
    for file in [*former, run / "metrics.csv"]:
        if not file.is_file():
            continue
        with file.open(encoding="utf-8", newline="") as opened:
            for row in csv.DictReader(opened):
                step = int(row.pop("step"))
                for tag, text in row.items():
                    if text:
                        points[tag].append((step, float(text)))
    return dict(points)
