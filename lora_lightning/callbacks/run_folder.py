"""Where a training run's results land."""

from pathlib import Path

from lightning import Trainer


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
