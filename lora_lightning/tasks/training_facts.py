"""What variants of LoRA may ask about a training, gathered from a task and its trainer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lora_lightning.backbones.first_token import every_token
from lora_lightning.lora.variants.variant import TrainingFacts
from lora_lightning.tasks.contract import TaskContract
from lora_lightning.tasks.step_weighting import loss_scale


def training_facts(task: TaskContract, trainer: Trainer, *, resumes: bool) -> TrainingFacts:
    """Gathers the facts; the data is read only if a variant asks for it.

    Args:
        task: With its model.
        trainer: About to train it.
        resumes: Whether the adapters come from a checkpoint.

    Returns:
        The facts, for this process.
    """
    device = trainer.strategy.root_device  # the task's own device follows later

    def evaluate(batch: Mapping[str, Tensor]) -> Any:
        return task.evaluate({name: value.to(device) for name, value in batch.items()})

    @contextmanager
    def isolated() -> Iterator[None]:
        with isolate_rng(), every_token(task):
            yield

    def report(line: str) -> None:
        if trainer.is_global_zero:
            print(line)

    return TrainingFacts(
        resumes=resumes,
        total_steps=lambda: trainer.estimated_stepping_batches,
        is_main_process=trainer.is_global_zero,
        device=device,
        # There may be no data module, if no variant asks for the data.
        batches=lambda: trainer.datamodule.train_dataloader(),  # type: ignore[attr-defined]  # noqa: PLW0108
        evaluate=evaluate,
        isolated=isolated,
        broadcast=trainer.strategy.broadcast,
        report=report,
        loss_scale=lambda: loss_scale(trainer),
    )
