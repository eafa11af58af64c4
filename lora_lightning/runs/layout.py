"""Names of the files in a run folder, the folder of a trainer's run, and the length of TensorBoard's event files."""

import os
from collections.abc import Mapping
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

ADAPTER_FOLDER = "adapter"
BEST = "best"
CHECKPOINTS = "checkpoints"
CONFIG, LOCK, RUN, SUMMARY = "config.yaml", "run.lock", "run.json", "summary.json"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
EVENT_SIZES, COMPLETE_STEP = "event_sizes", "whole_step"  # in a checkpoint
FAILED_CHECK = "failed_check"  # in the summary
TABLES = "adapter_metrics"  # the monitors' Parquet files
EVENTS = "events.out.tfevents.*"
HPARAMS_SUFFIX = ".hparams"  # of the event file that studies of older releases added for TensorBoard's HParams tab


def run_folder_of(trainer: Trainer) -> Path:
    """Returns the run folder, which contains `checkpoints/`, for any loggers.

    Args:
        trainer: The trainer with its loggers.

    Returns:
        `<save_dir>/<name>/<version>` of the first logger whose files are in such a folder, for TensorBoard or CSV;
        otherwise the trainer's root directory, which is the run folder of every run of ours that has none of them.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            return Path(logger.save_dir) / logger.name / version
    return Path(trainer.default_root_dir)


def event_sizes(run: Path) -> dict[str, int]:
    """Returns the current sizes of TensorBoard's event files.

    Args:
        run: The run folder.

    Returns:
        Sizes in bytes, by path relative to the run folder.
    """
    return {str(path.relative_to(run)): path.stat().st_size for path in run.rglob(EVENTS)}


def truncate_event_files(run: Path, sizes: Mapping[str, int]) -> None:
    """Removes everything that was logged after a checkpoint from TensorBoard's files; it will be logged again.

    Args:
        run: The run folder.
        sizes: The result of `event_sizes` when the checkpoint was written.
    """
    for path in run.rglob(EVENTS):
        size = sizes.get(str(path.relative_to(run)), 0)
        if size == 0:
            path.unlink()
        elif size < path.stat().st_size:
            os.truncate(path, size)
