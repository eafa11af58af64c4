"""Random numbers of a training step that depend on nothing before it, so that a resumed run draws the same."""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seeds every training batch by `seed_everything`, epoch, batch and process.

    A checkpoint then needs no random states: Lightning writes it on the main process alone, so those of the others
    would be lost, and validation, sanity checks and monitors could not draw a number without changing what follows.
    With `seed_everything: false` nothing is seeded.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds PyTorch, NumPy and Python."""
        del batch
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is None:
            return
        place = (int(seed), trainer.current_epoch, batch_idx, trainer.global_rank)
        torch_seed, numpy_seed = (int(word) for word in np.random.SeedSequence(place).generate_state(2, np.uint32))
        if pl_module.device.type == "cpu":
            torch.default_generator.manual_seed(torch_seed)  # torch.manual_seed walks the stack for a GPU to come
        else:
            torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)  # noqa: NPY002  # the global state is what a user's callback may draw from
        random.seed(numpy_seed)
