"""What a run's options must be beyond their types, found before any weights load."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from lora_lightning import callbacks
from lora_lightning.callbacks.adapter_monitor import AdapterMonitor
from lora_lightning.compat.lightning import copies_this_process
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.direction import HIGHER_IS_BETTER, LOWER_IS_BETTER
from lora_lightning.training.checkpointing import unknown_monitor
from lora_lightning.training.strategies import FullyShardedStrategy

SEEDS = 2**32  # NumPy's
MOST_BATCHES = 2**31  # the loss is multiplied by their number


def check_seed(seed: bool | int | None) -> None:
    """Refuses a seed that NumPy does not take, and true, which would be another run after each start.

    Args:
        seed: `seed_everything`; false and `None` seed nothing.

    Raises:
        ConfigurationError: If it is too large or negative, or true.
    """
    if seed is True:
        msg = f"seed_everything is true, which is no number; give one in [0, {SEEDS}), or false to seed nothing."
        raise ConfigurationError(msg)
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed < SEEDS:
        msg = f"seed_everything is {seed}, but a seed in [0, {SEEDS}) is needed."
        raise ConfigurationError(msg)


def check_strategy(strategy: Strategy) -> None:
    """Refuses a strategy whose checkpoints no other strategy could load, and processes that are copies of this one.

    Args:
        strategy: The trainer's.

    Raises:
        ConfigurationError: If it is one.
    """
    if copies_this_process(strategy):
        msg = (
            "trainer.strategy starts its processes by spawn or fork, which would leave the trained model in one of "
            "them; set it to ddp."
        )
        raise ConfigurationError(msg)
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FullyShardedStrategy):
        msg = (
            f"trainer.strategy is {type(strategy).__name__}, whose checkpoints no other strategy could load; set "
            "it to auto or ddp, or use configs/trainer/fsdp2.yaml, which shards."
        )
        raise ConfigurationError(msg)


def check_mode(monitor: str, mode: str) -> None:
    """Refuses to look for the worst model.

    Args:
        monitor: The metric that decides what is best.
        mode: `max` where higher is better, `min` where lower is.

    Raises:
        ConfigurationError: If it is the other way round.
    """
    metric = monitor.rpartition("/")[2].removesuffix("_at_threshold")
    if mode == "max" and metric in LOWER_IS_BETTER:
        msg = f"checkpoint.mode is max, but a lower {monitor} is better; set --checkpoint.mode min."
        raise ConfigurationError(msg)
    if mode == "min" and metric.endswith(HIGHER_IS_BETTER):
        msg = f"checkpoint.mode is min, but a higher {monitor} is better; set --checkpoint.mode max."
        raise ConfigurationError(msg)


def check_reported(monitor: str, splits: Iterable[str], metrics: Iterable[str]) -> None:
    """Refuses a metric of a validation split that the task does not have; a user's callback may log others.

    Args:
        monitor: The metric that decides what is best.
        splits: Those of validation.
        metrics: The task's, without a split.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    names = [f"{split}/{metric}" for split in splits for metric in metrics]
    if monitor.partition("/")[0] in {name.partition("/")[0] for name in names} and monitor not in names:
        raise unknown_monitor(monitor, names)


def check_steps(trainer: Any, early_stopping: Any) -> None:
    """Refuses numbers that Lightning accepts silently and training cannot use.

    Args:
        trainer: Its options.
        early_stopping: Its options.

    Raises:
        ConfigurationError: If there is one.
    """
    batches, clip, patience = trainer.accumulate_grad_batches, trainer.gradient_clip_val, early_stopping.patience
    if not 1 <= batches <= MOST_BATCHES:  # Lightning divides by 0, and silently by -2
        bound = "least 1 batch" if batches < 1 else f"most {MOST_BATCHES} batches"
        msg = f"trainer.accumulate_grad_batches is {batches}, but a step is made of at {bound}."
        raise ConfigurationError(msg)
    if clip is not None and not 0 <= clip < math.inf:
        msg = f"trainer.gradient_clip_val is {clip}, but a norm of at least 0 is needed, or null for no clipping."
        raise ConfigurationError(msg)
    if patience < 0:
        msg = f"early_stopping.patience is {patience}, but it is a number of validations, at least 0."
        raise ConfigurationError(msg)
    if trainer.get("overfit_batches"):
        msg = "trainer.overfit_batches is not supported; use trainer.limit_train_batches and limit_val_batches."
        raise ConfigurationError(msg)


def check_monitors_once(class_paths: Sequence[str]) -> None:
    """Refuses a monitor that is there twice: both would write the same file, as where two configs bring it.

    Args:
        class_paths: Of `trainer.callbacks`.

    Raises:
        ConfigurationError: Names the first.
    """
    names = [path.rpartition(".")[2] for path in class_paths]
    for name in names:
        monitor = getattr(callbacks, name, None)
        if names.count(name) > 1 and isinstance(monitor, type) and issubclass(monitor, AdapterMonitor):
            msg = (
                f"trainer.callbacks has {name} {names.count(name)} times; leave all but one out, or one of the configs."
            )
            raise ConfigurationError(msg)


def check_writable(folder: Path, remedy: str = "--trainer.logger.init_args.save_dir to a folder") -> None:
    """Makes a folder and tries to write into it.

    Args:
        folder: Where results will land.
        remedy: What to set to what, to choose another place.

    Raises:
        ConfigurationError: If that fails.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        msg = f"the folder {folder} cannot be written ({error.strerror}); set {remedy} that can."
        raise ConfigurationError(msg) from error
