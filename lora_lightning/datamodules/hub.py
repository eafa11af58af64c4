"""Data sets of the hub through the `datasets` library."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.backbones import hub_is_reachable
from lora_lightning.datamodules.base import TEST, TRAIN, VALIDATION
from lora_lightning.errors import DataError, suggest_names
from lora_lightning.runs.tables import Table

# What data sets call their splits, in order of preference.
HUB_SPLITS = {TRAIN: ("train",), VALIDATION: ("validation", "valid", "val", "dev"), TEST: ("test",)}


def load_hub_dataset(name: str, config: str | None, remedy: str) -> Any:
    """Fetches a data set, or finds it in the hub's cache.

    Args:
        name: Hub id, such as `nyu-mll/glue`.
        config: Configuration of the data set, if it has several.
        remedy: What to do without network, for the message.

    Returns:
        A `datasets.DatasetDict`.

    Raises:
        DataError: If it cannot be fetched.
    """
    import datasets  # noqa: PLC0415  # a second and 100 MiB that local files do not need

    reachable = hub_is_reachable()
    try:
        download = datasets.DownloadConfig(local_files_only=not reachable)
        return datasets.load_dataset(name, config, download_config=download)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if (reachable or Path(name).exists()) and str(error).strip():
            msg = f"the data set {name} could not be loaded: {' '.join(str(error).split())}"
        else:
            msg = f"the data set {name} could not be downloaded from the hub; {remedy}"
        raise DataError(msg) from error


def named_splits(name: str, splits: Iterable[str]) -> dict[str, str]:
    """Finds the splits of a data set by their usual names, and names those that are not read.

    Args:
        name: The data set's id.
        splits: As the hub calls them.

    Returns:
        The hub's name by `train`, `val` and `test`, for those that it has.
    """
    there = list(splits)
    found = {
        split: next(choice for choice in choices if choice in there)
        for split, choices in HUB_SPLITS.items()
        if not set(choices).isdisjoint(there)
    }
    if unread := [split for split in there if split not in found.values()]:
        rank_zero_warn(f"the data set {name} has splits that are not read: {', '.join(unread)}.")
    return found


def hub_table(splits: Any, name: str, split: str, columns: Sequence[str]) -> Table:
    """One split of a hub data set.

    Args:
        splits: From `load_hub_dataset`.
        name: What to call it.
        split: As the hub calls it.
        columns: Those that are needed; others stay on disk.

    Returns:
        The table. Numbers of a class label are its names, and -1, the hub's word for a hidden label, is `None`.

    Raises:
        DataError: If a column is missing.
    """
    import datasets  # noqa: PLC0415

    part = splits[split]
    cells_of = {}
    for column in columns:
        if column not in part.column_names:
            msg = f"{name}, {split} has no column {column!r}; {suggest_names(column, part.column_names)}"
            raise DataError(msg)
        cells, feature = list(part[column]), part.features[column]
        if isinstance(feature, datasets.ClassLabel):
            cells = [_class_name(feature, cell) for cell in cells]
        elif isinstance(getattr(feature, "feature", None), datasets.ClassLabel):
            cells = [None if cell is None else [_class_name(feature.feature, one) for one in cell] for cell in cells]
        cells_of[column] = cells
    return Table(f"{name}, {split}", cells_of, "row", range(1, len(part) + 1))


def hub_label_names(splits: Any, split: str, column: str) -> list[str] | None:
    """The names that a hub data set gives its classes, in its own order.

    Args:
        splits: From `load_hub_dataset`.
        split: As the hub calls it.
        column: Of the labels.

    Returns:
        The names, or `None` where the data set has none.
    """
    feature = splits[split].features.get(column)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else list(names)


def _class_name(feature: Any, number: int | None) -> str | None:
    return None if number is None or number < 0 else str(feature.names[number])
