"""Checks of option values that types cannot express, before any weights load."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning import callbacks
from lora_lightning.callbacks.adapter_monitor import AdapterMonitor
from lora_lightning.compat.lightning import copies_this_process
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.direction import higher_is_better
from lora_lightning.training.checkpointing import unknown_monitor_error
from lora_lightning.training.strategies import FullyShardedStrategy

SEEDS = 2**32  # NumPy's
MOST_BATCHES = 2**31  # the loss is multiplied by their number


def check_seed(seed: bool | int | None) -> None:
    """Refuses a seed that NumPy does not accept, and `true`, with which every start would be a different run.

    Args:
        seed: `seed_everything`. With false or `None`, nothing is seeded.

    Raises:
        ConfigurationError: If the seed is negative, too large, or true.
    """
    if seed is True:
        msg = f"seed_everything is true, but it must be an integer in [0, {SEEDS}), or false to seed nothing."
        raise ConfigurationError(msg)
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed < SEEDS:
        msg = f"seed_everything is {seed}, but it must be in [0, {SEEDS})."
        raise ConfigurationError(msg)


def check_strategy(strategy: Strategy) -> None:
    """Refuses strategies whose checkpoints no other strategy can load, and strategies that spawn or fork.

    Args:
        strategy: The trainer's strategy.

    Raises:
        ConfigurationError: If the strategy is not supported.
    """
    if copies_this_process(strategy):
        msg = (
            "trainer.strategy starts its processes by spawn or fork, so the trained model would exist only in a "
            "process that ends; set it to ddp."
        )
        raise ConfigurationError(msg)
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FullyShardedStrategy):
        msg = (
            f"trainer.strategy is {type(strategy).__name__}, whose checkpoints no other strategy can load; set it to "
            "auto or ddp, or use configs/trainer/fsdp2.yaml, which shards the model."
        )
        raise ConfigurationError(msg)


def check_monitor_mode(monitor: str, mode: str) -> None:
    """Refuses a mode that would select the worst model; says what `min`, the default, means for an unknown metric.

    Args:
        monitor: The metric that selects the best checkpoint.
        mode: `max` if higher values of the metric are better, `min` if lower values are.

    Raises:
        ConfigurationError: If the mode contradicts the direction of the metric.
    """
    better = higher_is_better(monitor.partition("/")[2] or monitor)  # of val/domain_accuracy/travel, domain_accuracy
    if mode == "max" and better is False:
        msg = f"checkpoint.mode is max, but a lower {monitor} is better; set --checkpoint.mode min."
        raise ConfigurationError(msg)
    if mode == "min" and better is None:
        rank_zero_warn(
            f"checkpoint.mode is min, so the best checkpoint is that with the lowest {monitor}; if a higher one is "
            "better, set --checkpoint.mode max."
        )
    if mode == "min" and better:
        msg = f"checkpoint.mode is min, but a higher {monitor} is better; set --checkpoint.mode max."
        raise ConfigurationError(msg)


def check_monitor_is_reported(monitor: str, splits: Iterable[str], metrics: Iterable[str]) -> None:
    """Refuses a metric of a validation split that the task does not report. Other names may come from a callback.

    Args:
        monitor: The metric that selects the best checkpoint.
        splits: Names of the validation splits.
        metrics: Names of the task's metrics, without a split.

    Raises:
        ConfigurationError: If the monitor names a validation split, but none of its metrics.
    """
    names = [f"{split}/{metric}" for split in splits for metric in metrics]
    if monitor.partition("/")[0] in {name.partition("/")[0] for name in names} and monitor not in names:
        raise unknown_monitor_error(monitor, names)


def check_step_options(trainer: Any, early_stopping: Any) -> None:
    """Refuses numbers that Lightning accepts silently although training cannot use them.

    Args:
        trainer: Options of the trainer.
        early_stopping: Options of early stopping.

    Raises:
        ConfigurationError: If one of the numbers is out of range.
    """
    batches, clip, patience = trainer.accumulate_grad_batches, trainer.gradient_clip_val, early_stopping.patience
    if not 1 <= batches <= MOST_BATCHES:  # Lightning divides by 0, and silently by -2
        bound = "least 1" if batches < 1 else f"most {MOST_BATCHES}"
        msg = f"trainer.accumulate_grad_batches is {batches}, but it must be at {bound}."
        raise ConfigurationError(msg)
    if clip is not None and not 0 <= clip < math.inf:
        msg = f"trainer.gradient_clip_val is {clip}, but it must be a finite norm of at least 0, or null to not clip."
        raise ConfigurationError(msg)
    if patience < 0:
        msg = f"early_stopping.patience is {patience}, but it must be at least 0 validations."
        raise ConfigurationError(msg)
    if trainer.get("overfit_batches"):
        msg = "trainer.overfit_batches is not supported; use trainer.limit_train_batches and limit_val_batches."
        raise ConfigurationError(msg)


def check_no_rows_are_left_out(command: str, trainer: Any, words: Sequence[str]) -> None:
    """Refuses options with which a command would leave out rows although its results pass for those of all.

    Args:
        command: `validate`, `test` or `predict`.
        trainer: Options of the trainer.
        words: The command line.

    Raises:
        ConfigurationError: If there is one.
    """
    if trainer.get("fast_dev_run"):
        msg = (
            f"trainer.fast_dev_run is {trainer.fast_dev_run}, but {command} would take a few rows for all; leave it out"
        )
        raise ConfigurationError(msg + (", or set --trainer.limit_test_batches." if command == "test" else "."))
    if command == "predict" and any(word.startswith("--trainer.limit_predict_batches") for word in words):
        msg = (
            f"trainer.limit_predict_batches is {trainer.limit_predict_batches}, but predict writes a prediction for "
            "every row; leave it out, and give data.predict_file the rows to predict."
        )
        raise ConfigurationError(msg)


def without_repeated_monitors(entries: Sequence[Any]) -> list[Any]:
    """Leaves out monitors that two configs add with the same options.

    Args:
        entries: `trainer.callbacks`, parsed.

    Returns:
        The first of each, and all other callbacks.
    """
    kept: list[Any] = []
    for entry in entries:
        is_own = entry.class_path.rpartition(".")[2] in callbacks.__all__
        if not is_own or all(entry.as_dict() != other.as_dict() for other in kept):
            kept.append(entry)
    return kept


def check_no_repeated_monitors(class_paths: Sequence[str]) -> None:
    """Refuses a monitor that is added twice: both would write the same file.

    Args:
        class_paths: Those of the callbacks that the user gave.

    Raises:
        ConfigurationError: If a monitor occurs more than once.
    """
    names = [path.rpartition(".")[2] for path in class_paths]
    for name in names:
        monitor = getattr(callbacks, name, None)
        if names.count(name) > 1 and isinstance(monitor, type) and issubclass(monitor, AdapterMonitor):
            msg = (
                f"{name} is given {names.count(name)} times, in trainer.callbacks or from Python, and all would write "
                "the same files; keep one of them, or leave out one of the configs that add it."
            )
            raise ConfigurationError(msg)


def check_writable(folder: Path, remedy: str = "--trainer.logger.init_args.save_dir to a folder") -> None:
    """Creates a folder and checks that files can be written to it.

    Args:
        folder: The folder for the results.
        remedy: The option that chooses another folder, after "set".

    Raises:
        ConfigurationError: If the folder cannot be created or written.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        msg = f"the folder {folder} is not writable ({error.strerror}); set {remedy} that is."
        raise ConfigurationError(msg) from error
