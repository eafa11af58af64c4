"""What happens between two optimizer steps, so that a run that stops there can be resumed exactly."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from torch import Tensor

from lora_lightning.compat.lightning import batch_progress, begin_epoch_afresh, run_end_of_training, set_logged_step
from lora_lightning.errors import CheckpointError
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.early_stopping import restart_early_stopping
from lora_lightning.training.stop_requests import StopSignals


class StepBoundary(Callback):
    """Before each batch: writes `last.ckpt` if it is due, stops if requested, and seeds the random numbers.

    It must be the first callback, because everything that other callbacks do with the batch belongs to the next step.

    Every training batch is seeded from `seed_everything`, epoch, batch and process. A checkpoint then needs no random
    states: Lightning writes it on the main process only, so those of the others would be lost, and no validation or
    monitor could draw a random number without changing the following steps. With `seed_everything: false` nothing is
    seeded.

    Args:
        start: File name and number of optimizer steps of the checkpoint from which this process resumes.
    """

    def __init__(self, start: tuple[str, int] | None = None) -> None:
        self.start = start
        self.signals = StopSignals()
        self.before_logging: Callable[[Trainer], None] | None = None  # on the main process
        self.starts_from_another_run = False
        self.keeps_scores = True  # of that run
        self._stopping: list[tuple[EarlyStopping, int, Tensor]] = []  # with the patience that the user gave
        self._began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that all processes resume from the same checkpoint, before they do anything together."""
        del pl_module
        if stage == "fit":
            check_same_checkpoint(trainer, self.start)
            stopping = trainer.early_stopping_callbacks
            self._stopping = [(callback, callback.patience, callback.best_score) for callback in stopping]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the signal handlers; Lightning has already installed its own."""
        del trainer, pl_module
        self.signals.install_handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the signal handlers if there was no sanity check; a run that had stopped early stays stopped.

        A new run that starts from the checkpoint of one that had stopped goes on, with the patience that it was given.
        """
        del pl_module
        self.signals.install_handlers()
        self._began = True
        if batch_progress(trainer).current.ready == 0:
            begin_epoch_afresh(trainer)
        for callback, patience, worst in self._stopping if self.starts_from_another_run else ():
            callback.patience = patience  # Lightning restores that of the checkpoint
            restart_early_stopping(callback, None if self.keeps_scores else worst)
        stopping = trainer.early_stopping_callbacks
        if any(callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED for callback in stopping):
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends training if a run is resumed from its last step: Lightning leaves out what is exported and checked."""
        del pl_module
        resumes = trainer.ckpt_path is not None and not self.starts_from_another_run
        if not self._began and resumes and trainer.fit_loop.done:
            run_end_of_training(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets signals stop the test immediately. Nothing is lost, because a resumed run tests again."""
        del pl_module
        self.signals.stop_if_requested(trainer)  # a signal may have arrived during the last validation
        self.signals.stop_immediately(trainer)
        set_logged_step(trainer, trainer.global_step)  # which is not set if the run resumed after its last step

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Calls `before_logging` before the step is logged."""
        self._before_logging(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calls `before_logging` before the metrics are logged."""
        del pl_module
        self._before_logging(trainer)

    def _before_logging(self, trainer: Trainer) -> None:
        if self.before_logging is not None and not trainer.sanity_checking:
            self.before_logging(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes `last.ckpt` if it is due, stops if requested, and seeds the batch.

        Raises:
            TrainingStopped: If any process received a signal. The last step is saved.
        """
        del batch
        self._before_logging(trainer)
        if batch_idx % trainer.accumulate_grad_batches == 0:  # the last step is complete
            checkpoint = next(c for c in trainer.checkpoint_callbacks if isinstance(c, AdapterCheckpoint))
            checkpoint.save_last_when_due(trainer)
            self.signals.stop_if_requested(trainer, save=checkpoint.save_last_between_steps)
        seed_batch(pl_module.device, trainer.current_epoch, batch_idx, trainer.global_rank)


def check_same_checkpoint(trainer: Trainer, start: tuple[str, int] | None) -> None:
    """Refuses to start if processes found different checkpoints, as without a shared file system; collective.

    Args:
        trainer: The trainer.
        start: File name and number of optimizer steps of this process's checkpoint, if it found one.

    Raises:
        CheckpointError: On every process, if any of them found another checkpoint than the main process.
    """
    if trainer.world_size == 1:
        return
    starts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(starts, start)
    described = [f"{found[0]} of step {found[1]}" if found else "no checkpoint" for found in starts]
    for rank, found in enumerate(described):
        if found != described[0]:
            msg = (
                f"the main process resumes from {described[0]}, but process {rank} found {found}; put the run folder "
                "on a file system that all machines share, and start the same command again."
            )
            raise CheckpointError(msg)


def seed_batch(device: torch.device, *position: int) -> None:
    """Seeds PyTorch, NumPy and Python from `seed_everything` and a position in training.

    Does nothing if `seed_everything` is false.

    Args:
        device: The device on which PyTorch draws random numbers.
        position: Numbers that identify the batch.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    if seed is None:
        return
    words = np.random.SeedSequence((int(seed), *position)).generate_state(2, np.uint32)
    torch_seed, numpy_seed = (int(word) for word in words)
    if device.type == "cpu":
        torch.default_generator.manual_seed(
            torch_seed
        )  # torch.manual_seed is slow: it also prepares the seed of GPUs that are not initialized
    else:
        torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)  # noqa: NPY002  # a user's callback may use the global state
    random.seed(numpy_seed)
