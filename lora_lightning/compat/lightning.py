"""Private and undocumented names of Lightning 2.6."""

import signal
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from torch import Tensor

CHECKPOINT_CONNECTOR = "lightning.pytorch.trainer.connectors.checkpoint_connector"
# The functions through which the trainer restores everything that a checkpoint holds.
RESTORING = frozenset(
    {
        "resume_start",
        "restore_datamodule",
        "restore_model",
        "restore_callbacks",
        "restore_training_state",
    }
)


# Functions that raise a ValueError or TypeError over an option while a command runs, long after it was given.
LATE_CHECKS = frozenset(
    {
        ("lightning.pytorch.loops.fit_loop", "setup_data"),  # val_check_interval above the number of batches
        (CHECKPOINT_CONNECTOR, "_parse_ckpt_path"),  # a word such as "best" in a run that has no such checkpoint
        ("lightning.pytorch.callbacks.model_checkpoint", "setup"),  # a user's own ModelCheckpoint
        ("lightning.pytorch.callbacks.gradient_accumulation_scheduler", "on_train_start"),
        ("lightning.pytorch.utilities.model_summary.model_summary", "__init__"),  # max_depth
        ("lightning.pytorch.strategies.ddp", "_enable_model_averaging"),
    }
)


class HookedCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` with public hooks around every file that it writes or removes.

    Lightning has no hook between "this is the best epoch" and the file, so what belongs to a file (the exported
    adapter, the curves up to that step) could not be written together with it.
    """

    def save_file(self, trainer: Trainer, filepath: str) -> None:
        """Writes one checkpoint file; override to add to it.

        Args:
            trainer: The trainer.
            filepath: The file.
        """
        super()._save_checkpoint(trainer, filepath)

    def save_last_file(self, trainer: Trainer, candidates: dict[str, Tensor]) -> None:
        """Writes `last.ckpt`, through `save_file`; override to skip it.

        Args:
            trainer: The trainer.
            candidates: The logged metrics, and `epoch` and `step`.
        """
        super()._save_last_checkpoint(trainer, candidates)

    def remove_file(self, trainer: Trainer, filepath: str) -> None:
        """Removes a checkpoint file that a newer one replaces; override to keep it.

        Args:
            trainer: The trainer.
            filepath: The file.
        """
        super()._remove_checkpoint(trainer, filepath)

    def save_last_file_now(self, trainer: Trainer) -> None:
        """Calls `save_last_file`, which Lightning itself does only after a new best checkpoint.

        Args:
            trainer: The trainer.
        """
        self.save_last_file(trainer, self._monitor_candidates(trainer))

    @property
    def last_saved_step(self) -> int:
        """The optimizer step of the newest file; Lightning looks for a new best checkpoint at later steps only."""
        return self._last_global_step_saved

    @last_saved_step.setter
    def last_saved_step(self, step: int) -> None:
        self._last_global_step_saved = step

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.save_file(trainer, filepath)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self.save_last_file(trainer, monitor_candidates)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.remove_file(trainer, filepath)


class HookedScriptLauncher(_SubprocessScriptLauncher):
    """The launcher that starts one process for each device, with a public hook around that start.

    Lightning's own observer kills the main process as soon as another one fails, before it can say why.
    """

    def start_processes(self) -> None:
        """Starts the other processes of this machine, into `procs`; override to prepare and watch them."""
        super()._call_children_scripts()

    def _call_children_scripts(self) -> None:
        self.start_processes()


def copies_this_process(strategy: Strategy) -> bool:
    """Returns whether a strategy starts its processes by spawn or fork; its launcher has no public name.

    Args:
        strategy: The trainer's strategy.
    """
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def replace_script_launcher(strategy: Strategy, launcher_class: type[HookedScriptLauncher]) -> None:
    """Replaces the launcher of a strategy that starts this program again; another launcher stays.

    A strategy makes its launcher itself, and no argument chooses the class.

    Args:
        strategy: The trainer's strategy, before it has started processes.
        launcher_class: The class to use instead, with the same arguments.
    """
    launcher = strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        strategy._launcher = launcher_class(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)


def keep_signal_handlers(trainer: Trainer) -> None:
    """Stops Lightning from setting handlers of SIGTERM and SIGUSR1; it still restores the previous handlers at the end.

    Its SLURM handler saves in the middle of a step, and its SIGTERM handler talks to the other processes at any time.
    No option turns both off.

    Args:
        trainer: Before it runs.
    """
    connector = trainer._signal_connector

    def register_signal_handlers() -> None:
        connector._original_handlers = connector._get_current_signal_handlers()

    connector.register_signal_handlers = register_signal_handlers  # type: ignore[method-assign]


def is_ending_after_interrupt() -> bool:
    """Returns whether Lightning is ending after a Ctrl-C: it ignores further ones and then exits with 1."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def trainer_of(module: LightningModule) -> Trainer | None:
    """Returns a module's trainer, `None` without one; the public property raises an error then.

    Args:
        module: Any.
    """
    return module._trainer


def leave_hyperparameters_to_us(module: LightningModule) -> None:
    """Stops the trainer from logging a module's hyperparameters, which are a part of the settings that we log.

    Only the call that saves them for checkpoints decides that, and it does not know whether the module is part of a run
    of ours.

    Args:
        module: Before it is trained.
    """
    module._log_hyperparams = False


def reopen_event_file(logger: TensorBoardLogger) -> None:
    """Makes a logger write into a new event file, because its file was deleted; there is no public way to drop it.

    Args:
        logger: On the main process.
    """
    logger._experiment = None


def shard_over(strategy: ModelParallelStrategy, processes: int) -> None:
    """Sets over how many processes a strategy shards, once the trainer has said how many there are.

    The constructor takes a number or "auto", and "auto" means the processes of one machine only.

    Args:
        strategy: Before its environment is set up.
        processes: Their number.
    """
    strategy._data_parallel_size = processes


def batch_progress(trainer: Trainer) -> Any:
    """Returns the counters of training batches, `current` for this epoch and `total`: `ready`, `completed` and others.

    The public counters are in optimizer steps, which hide accumulated batches.

    Args:
        trainer: The trainer.
    """
    return trainer.fit_loop.epoch_loop.batch_progress


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Sets the step under which the trainer logs.

    Lightning counts a step only after its validation; a run that ends right after it resumed from that validation's
    checkpoint would log its test one step too early.

    Args:
        trainer: The trainer.
        step: The number of optimizer steps.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def begin_epoch_afresh(trainer: Trainer) -> None:
    """Tells the trainer that it does not resume inside an epoch.

    Before an epoch's first batch it would take a validation for done, and a step.

    Args:
        trainer: At the start of training.
    """
    trainer.fit_loop.epoch_loop.restarting = False


def run_end_of_training(trainer: Trainer) -> None:
    """Runs the hooks from `on_train_start` to `on_train_end` without a step.

    Lightning skips them if the checkpoint to resume from is already at `max_steps` or at the end of `max_epochs`.

    Args:
        trainer: After `fit` had nothing to do.
    """
    trainer.fit_loop.on_run_start()
    trainer.fit_loop.on_run_end()


def take_back_batch(checkpoint: dict[str, Any]) -> None:
    """Removes a batch that was fetched but not trained on from the counters in a checkpoint, in place.

    Args:
        checkpoint: As `on_save_checkpoint` gets it.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    progress["current"]["ready"] -= 1
    progress["total"]["ready"] -= 1
    progress["is_last_batch"] = False


def raised_while_restoring(traceback: TracebackType | None) -> bool:
    """Returns whether an error was raised while Lightning restored a checkpoint.

    Lightning passes on whatever error the restored object raises.

    Args:
        traceback: Of the error.
    """
    return any(module == CHECKPOINT_CONNECTOR and function in RESTORING for module, function in _places(traceback))


def checks_option_late(traceback: TracebackType | None) -> bool:
    """Returns whether an error was raised by a function of Lightning that checks an option only while it runs.

    Args:
        traceback: Of the error.
    """
    return bool(places := list(_places(traceback))) and places[-1] in LATE_CHECKS


def _places(traceback: TracebackType | None) -> Iterator[tuple[str, str]]:
    """The module's and the function's name of every call that led to an error."""
    while traceback is not None:
        frame = traceback.tb_frame
        yield str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        traceback = traceback.tb_next


class EpochsFromOne(RichProgressBar):
    """Lightning's progress bar, which counts epochs from 0, counting as `max_epochs` does (2.6)."""

    def _get_train_description(self, current_epoch: int) -> str:
        del current_epoch
        # As long as the other description, like Lightning's own, or the line would flicker.
        return f"{epoch_of(self.trainer):{len(self.validation_description)}}"


def epoch_of(trainer: Trainer) -> str:
    """Returns the epoch that is trained, from 1, such as `Epoch 1/6`.

    Args:
        trainer: While it trains.
    """
    last = trainer.max_epochs
    return f"Epoch {trainer.current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")
