"""Whether the data is still that of a run: its rows by their hashes, whatever release recorded them."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.datamodules.base import TRAIN, AdaptationDataModule
from lora_lightning.datamodules.content_hash import has_places
from lora_lightning.errors import DataError
from lora_lightning.runs.layout import CONFIG
from lora_lightning.runs.record import RunRecord


def recorded_and_current(
    record: RunRecord, datamodule: AdaptationDataModule
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The hashes of a run's rows and of today's, by the definition that the run was recorded with.

    Args:
        record: The run.
        datamodule: The data.

    Returns:
        Hashes by split, those of the run first; empty for a run that has none.
    """
    now = datamodule.former_fingerprint if record.has_former_hashes else datamodule.fingerprint
    return record.data_fingerprint, now


def check_evaluated_rows(folder: Path, datamodule: AdaptationDataModule, kind: str, remedy: str = "") -> None:
    """Refuses to score held-out rows if the training data has changed, for the run may have been trained on them.

    Other rows than those of the run are scored with a warning.

    Args:
        folder: The run's; a folder of another kind has no hashes to compare with.
        datamodule: The data to evaluate on.
        kind: `val` or `test`.
        remedy: What else to do about it, such as an option that allows it; a warning is enough if it is empty.

    Raises:
        DataError: If scores would be too high.
    """
    if not (folder / CONFIG).is_file():
        return
    record = RunRecord.load(folder)
    saved, now = recorded_and_current(record, datamodule)
    for split in datamodule.split_names(kind):
        is_held_out = split in datamodule.held_out_splits
        if saved.get(split) == now[split]:
            continue
        if not saved or (record.has_former_hashes and has_places(datamodule.raw_splits[split])):
            if is_held_out or saved:
                rank_zero_warn(
                    f"the run {folder} was made by an earlier release, so it is not known whether its data is still "
                    f"the same, and the rows of {split} are its own."
                )
        elif is_held_out and saved.get(TRAIN) != now.get(TRAIN):
            msg = (
                f"the run {folder} was trained on other rows than these files and options give, and the rows of "
                f"{split} are held out from the training data, so it may have been trained on some of them, and scores "
                "would be too high"
            )
            if remedy:
                error = f"{msg}. Restore the data, give {split} rows of its own, or {remedy}."
                raise DataError(error)
            rank_zero_warn(f"{msg}.")
        elif split in saved:
            rank_zero_warn(
                f"the rows of {split} are other ones than when the run {folder} was trained, so these scores cannot be "
                "compared with its own."
            )
