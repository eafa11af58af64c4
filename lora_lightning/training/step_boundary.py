"""What happens between two optimizer steps, so that a run that ends there can be resumed as if it had not."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lora_lightning.compat.lightning import batch_progress, begin_epoch_afresh, run_end_of_training, set_logged_step
from lora_lightning.errors import CheckpointError
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.stop_requests import StopSignals


class StepBoundary(Callback):
    """Before each batch: keeps the last step where that is due, stops if asked to, and seeds the batch's randomness.

    Must be the first callback: what the others do with the batch at hand belongs to the next step.

    Every training batch is seeded by `seed_everything`, epoch, batch and process. A checkpoint then needs no random
    states: Lightning writes it on the main process alone, so those of the others would be lost, and validation and
    monitors could not draw a number without changing what follows. With `seed_everything: false` nothing is seeded.

    Args:
        start: Name and optimizer steps of the checkpoint that this process found to resume from.
    """

    def __init__(self, start: tuple[str, int] | None = None) -> None:
        self.start = start
        self.signals = StopSignals()
        self.before_logging: Callable[[Trainer], None] | None = None  # on the main process
        self._began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares which checkpoints the processes resume from, before they do anything together."""
        del pl_module
        if stage == "fit":
            check_same_start(trainer, self.start)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens from here on; Lightning has set its own handlers by now."""
        del trainer, pl_module
        self.signals.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens from here on, where nothing was validated before; a run that had stopped early stays stopped."""
        del pl_module
        self.signals.listen()
        self._began = True
        if batch_progress(trainer).current.ready == 0:
            begin_epoch_afresh(trainer)
        stopping = trainer.early_stopping_callbacks
        if any(callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED for callback in stopping):
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends training if a run is resumed from its last step: Lightning leaves out what is exported and checked."""
        del pl_module
        if not self._began and trainer.ckpt_path is not None and trainer.fit_loop.done:
            run_end_of_training(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is lost when the test after training ends at once: a resumed run tests again."""
        del pl_module
        self.signals.check(trainer)  # the last validation may have been asked to stop
        self.signals.stop_at_once(trainer)
        set_logged_step(trainer, trainer.global_step)  # the run may have ended by resuming from a validation

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Before the step is logged."""
        self._before_logging(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the metrics are logged."""
        del pl_module
        self._before_logging(trainer)

    def _before_logging(self, trainer: Trainer) -> None:
        if self.before_logging is not None and not trainer.sanity_checking:
            self.before_logging(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Does all three.

        Raises:
            TrainingStopped: If any process was asked to stop; the last step is saved.
        """
        del batch
        self._before_logging(trainer)
        if batch_idx % trainer.accumulate_grad_batches == 0:  # the last step is complete
            checkpoint = next(c for c in trainer.checkpoint_callbacks if isinstance(c, AdapterCheckpoint))
            checkpoint.save_last_when_due(trainer)
            self.signals.check(trainer, save=checkpoint.save_last_between_steps)
        seed_batch(pl_module.device, trainer.current_epoch, batch_idx, trainer.global_rank)


def check_same_start(trainer: Trainer, start: tuple[str, int] | None) -> None:
    """Refuses processes that found different checkpoints, as machines without a common file system do; collective.

    Args:
        trainer: Knows the other processes.
        start: Name and optimizer steps of this process's checkpoint, if it found one.

    Raises:
        CheckpointError: On every process, if one found another than the main process.
    """
    if trainer.world_size == 1:
        return
    starts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(starts, start)
    said = [f"{found[0]} of step {found[1]}" if found else "no checkpoint" for found in starts]
    for rank, found in enumerate(said):
        if found != said[0]:
            msg = (
                f"the main process resumes from {said[0]}, but process {rank} found {found}; put the run folder where "
                "all machines see the same files, and start the same command again."
            )
            raise CheckpointError(msg)


def seed_batch(device: torch.device, *place: int) -> None:
    """Seeds PyTorch, NumPy and Python from `seed_everything` and a place in training; nothing without a seed.

    Args:
        device: Where random numbers of PyTorch are drawn.
        place: Numbers that tell the batch from all others.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    if seed is None:
        return
    words = np.random.SeedSequence((int(seed), *place)).generate_state(2, np.uint32)
    torch_seed, numpy_seed = (int(word) for word in words)
    if device.type == "cpu":
        torch.default_generator.manual_seed(torch_seed)  # torch.manual_seed walks the stack for a GPU to come
    else:
        torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)  # noqa: NPY002  # the global state is what a user's callback may draw from
    random.seed(numpy_seed)
