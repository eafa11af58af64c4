"""Logs the speed of training, its peak memory and its share of padding."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lora_lightning.loggers import boards_of
from lora_lightning.runs.resources import peak_memory, synchronized_time

MIB = 2**20


class ThroughputMonitor(Callback):
    """Logs averages since the previous log, every `trainer.log_every_n_steps` optimizer steps and at the end.

    The tags begin with `training_efficiency/`: `samples_per_second` and `tokens_per_second` (without padding) over all
    processes, `seconds_per_step` (per optimizer step), `padding_share` in [0, 1], and `peak_memory_mib` since the start
    of the process, of the process with the highest peak: memory that PyTorch allocated on a GPU, or else resident
    memory. The time for loading batches is included; the first batch, validation and checkpoints are not.

    Lightning's own monitor synchronizes with the GPU at each batch, assumes batches of equal size, counts padding, and
    logs nothing for runs shorter than its window. This one synchronizes only when it logs or pauses.
    """

    def __init__(self) -> None:
        self._since: float | None = None  # `None` before the first batch and after a pause
        self._logged_at = 0
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._batches, self._samples, self._places = 0.0, 0, 0, 0
        self._tokens: Tensor | int = 0  # on the device, so that counting needs no synchronization

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new measurement."""
        del pl_module
        self._since, self._logged_at = None, trainer.global_step
        self._reset()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        del pl_module
        self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock until the next epoch starts."""
        del pl_module
        self._stop(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Counts a batch; the first one after a pause only starts the clock."""
        del pl_module, outputs, batch_idx
        if self._since is None:
            self._since = synchronized_time(trainer.strategy.root_device)
            return
        mask = batch["attention_mask"]
        self._batches += 1
        self._samples += len(mask)
        self._places += mask.numel()
        self._tokens = self._tokens + mask.sum()
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_at:
            self._stop(trainer)
            self._since = time.perf_counter()
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the rest."""
        del pl_module
        self._stop(trainer)
        self._log(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self._since is not None:
            self._seconds += synchronized_time(trainer.strategy.root_device) - self._since
            self._since = None

    def _log(self, trainer: Trainer) -> None:
        """Logs and starts a new measurement; collective."""
        device, strategy = trainer.strategy.root_device, trainer.strategy
        own = torch.tensor([self._samples, int(self._tokens), self._places], device=device)
        samples, tokens, places = strategy.reduce(own, reduce_op="sum").tolist()
        memory = torch.tensor(peak_memory(device), device=device)
        values = {"peak_memory_mib": float(strategy.reduce(memory, reduce_op="max")) / MIB}
        if places and self._seconds:
            steps = self._batches / trainer.accumulate_grad_batches
            values |= {
                "samples_per_second": samples / self._seconds,
                "tokens_per_second": tokens / self._seconds,
                "seconds_per_step": self._seconds / steps,
                "padding_share": 1 - tokens / places,
            }
        self._logged_at = trainer.global_step
        self._reset()
        for board in boards_of(trainer):
            tags = {f"training_efficiency/{name}": value for name, value in values.items()}
            board.add_numbers(tags, trainer.global_step)
