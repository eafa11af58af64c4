"""Where a training run's results land, and what TensorBoard's files there hold."""

import os
from collections.abc import Mapping
from pathlib import Path

from lightning import Trainer

ADAPTER_FOLDER = "adapter"
BEST = "best"
CHECKPOINTS = "checkpoints"
CONFIG, LOCK, RUN, SUMMARY = "config.yaml", "run.lock", "run.json", "summary.json"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
EVENT_SIZES, WHOLE_STEP = "event_sizes", "whole_step"  # in a checkpoint
FAILED_CHECK = "failed_check"  # in the summary
TABLES = "adapter_metrics"  # the monitors' Parquet files
EVENTS = "events.out.tfevents.*"


def run_folder_of(trainer: Trainer) -> Path:
    """The folder that checkpoints go below, for any logger.

    Args:
        trainer: With its loggers.

    Returns:
        `<save_dir>/<name>/<version>` of the first logger, or the trainer's root without one.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    if logger.version is None:  # some loggers know it only once they have started
        _ = logger.experiment  # type: ignore[attr-defined]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def event_sizes(run: Path) -> dict[str, int]:
    """How much TensorBoard's files hold.

    Args:
        run: The run's folder.

    Returns:
        Bytes by path within the folder.
    """
    return {str(path.relative_to(run)): path.stat().st_size for path in run.rglob(EVENTS)}


def cut_events(run: Path, sizes: Mapping[str, int]) -> None:
    """Takes what was logged after a checkpoint out of TensorBoard's files: it is about to be logged again.

    Args:
        run: The run's folder.
        sizes: What `event_sizes` said when the checkpoint was written.
    """
    for path in run.rglob(EVENTS):
        size = sizes.get(str(path.relative_to(run)), 0)
        if size == 0:
            path.unlink()
        elif size < path.stat().st_size:
            os.truncate(path, size)
