"""The table of all trials of a study, as Parquet and CSV: one row per trial, one value per column."""

import csv
import io
from collections.abc import Collection, Mapping
from typing import Any

from lora_lightning.runs.files import atomic_file, write_error
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.journal import TrialStatus
from lora_lightning.studies.option_conflicts import parts_of
from lora_lightning.studies.plan import RANK, StudyPlan
from lora_lightning.studies.specification import FACTS_OF_TRIALS, RATE_OPTION, label_of
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_numbers import trial_numbers
from lora_lightning.studies.trials import Trial
from lora_lightning.training.main_settings import NUMBERS, TEXTS

USUAL = {**NUMBERS, **TEXTS, "r": RANK}  # which option TensorBoard shows by which short name
TABLE = "results"  # .csv and .parquet, in the study's folder
Row = dict[str, Any]


def trial_rows(plan: StudyPlan, folder: StudyFolder, statuses: Mapping[str, TrialStatus]) -> list[Row]:
    """Collects one row per trial, also of those that only help to choose, and of those that failed.

    Args:
        plan: The study.
        folder: Its folder.
        statuses: The state of each trial, by id.

    Returns:
        Rows with equal keys: `FACTS_OF_TRIALS` (`trial` is its folder), the options that the study varies by their
        short names, and all numbers of `trial_numbers`; `None` if a trial has no such value, or its folder is gone.

    Raises:
        LoraLightningError: If a run folder is damaged.
    """
    states = {"finished", "pruned"}
    ended = [trial for trial in plan.trials if statuses[trial.id].state in states and folder.run(trial).exists()]
    numbers = {trial.id: trial_numbers(RunRecord.load(folder.run(trial))) for trial in ended}
    measured = {name for found in numbers.values() for name in found}
    rows = []
    for trial in plan.trials:
        status = statuses[trial.id]
        facts = (trial.id, trial.configuration, trial.seed, trial in plan.tested, status.state, status.error or None)
        row: Row = dict(zip(FACTS_OF_TRIALS, facts, strict=True))
        rows.append(row | short_settings(plan, trial, measured) | numbers.get(trial.id, {}))
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def short_settings(plan: StudyPlan, trial: Trial, taken: Collection[str] = ()) -> dict[str, Any]:
    """Returns what distinguishes a trial from others: its axes, derived options and learning rate, by short names.

    Args:
        plan: The study.
        trial: The trial.
        taken: Names of other columns, beside `FACTS_OF_TRIALS`.

    Returns:
        Values by the last part of the option's name, or by the full name if two options end alike, or if the last part
        is the name of another column or usual for another option: text, numbers and truth values; others as YAML.
    """
    study = plan.study
    values = {axis.name: trial.labels[axis.name] if axis.is_named else trial.options[axis.name] for axis in study.axes}
    values |= {name: trial.options[name] for name in study.derived}
    if RATE_OPTION in trial.options:
        values[RATE_OPTION] = trial.options[RATE_OPTION]
    short = [name.rpartition(".")[2] for name in values]
    taken = {*taken, *FACTS_OF_TRIALS, *(last for last in short if short.count(last) > 1)}
    return {
        _column(name, last, taken): value if isinstance(value, str | int | float) else label_of(value)
        for (name, value), last in zip(values.items(), short, strict=True)
    }


def _column(name: str, last: str, taken: Collection[str]) -> str:
    """The name of the column of a setting."""
    if name == last:
        return f"axis.{name}" if name in taken else name
    usual = USUAL.get(last)
    return name if last in taken or (usual is not None and parts_of(usual) != parts_of(name)) else last


def write_trial_table(plan: StudyPlan, folder: StudyFolder, statuses: Mapping[str, TrialStatus]) -> None:
    """Writes `results.csv` and `results.parquet` into the study's folder.

    Args:
        plan: The study.
        folder: Its folder, locked.
        statuses: The state of each trial, by id.

    Raises:
        LoraLightningError: If a run folder is damaged, or a file cannot be written.
    """
    rows = trial_rows(plan, folder, statuses)
    for ending, content in ((".csv", _csv(rows)), (".parquet", _parquet(rows))):
        path = folder.path / f"{TABLE}{ending}"
        try:
            with atomic_file(path) as file:
                file.write(content)
        except OSError as error:
            raise write_error(path, error) from error


def _csv(rows: list[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[Row]) -> bytes:
    import pyarrow as pa  # noqa: PLC0415  # half a second
    from pyarrow import parquet  # noqa: PLC0415

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name, cells in columns.items():
        kinds = {type(cell) for cell in cells if cell is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:  # a column has one type
            columns[name] = [None if cell is None else str(cell) for cell in cells]
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()
