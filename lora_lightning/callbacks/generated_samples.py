"""A few generated texts for TensorBoard, to read what the metrics do not tell."""

from collections.abc import Sequence
from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lora_lightning.datamodules.batching import TokenizedDataset
from lora_lightning.datamodules.causal_language_modeling import CausalLMDataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.sharding import is_sharded
from lora_lightning.tasks import CausalLanguageModelingTask


class GeneratedSamples(Callback):
    """Continues the same prompts after each validation, as `model.generation` says; does nothing without TensorBoard.

    Args:
        prompts: Texts to continue, or instructions to respond to.
        seed: Of the draws, where `model.generation.do_sample` is set; training's own random numbers stay as they are.
    """

    def __init__(self, prompts: list[str], seed: int = 0) -> None:
        if not prompts or not all(prompt.strip() for prompt in prompts):
            msg = "GeneratedSamples needs at least one prompt, and none may be empty."
            raise ConfigurationError(msg)
        self.prompts = prompts
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a task that cannot generate, and prompts that are too long, before any weights load.

        Raises:
            ConfigurationError: If it is not `CausalLanguageModelingTask`, or a prompt leaves no room to complete it.
        """
        if not isinstance(pl_module, CausalLanguageModelingTask):
            msg = f"the callback GeneratedSamples needs a CausalLanguageModelingTask, not {type(pl_module).__name__}."
            raise ConfigurationError(msg)

        if stage == "fit":
            places = [f"GeneratedSamples, prompt {number}" for number in range(1, len(self.prompts) + 1)]
            pl_module.check_lengths(self._rows(trainer).lengths.tolist(), places)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generates and shows."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        task = cast("CausalLanguageModelingTask", pl_module)
        takes_part = trainer.is_global_zero or is_sharded(task)  # shards are gathered from every process
        if trainer.sanity_checking or not boards or not takes_part:
            return
        with isolate_rng():
            torch.manual_seed(self.seed)
            completions = task.complete(self._batch(trainer, task))
        for board in boards:
            text = samples_table(self.prompts, completions)
            board.experiment.add_text("samples", text, global_step=trainer.global_step)

    def _batch(self, trainer: Trainer, task: CausalLanguageModelingTask) -> dict[str, Tensor]:
        rows = self._rows(trainer)
        return {name: tensor.to(task.device) for name, tensor in rows[range(len(rows))].items()}

    def _rows(self, trainer: Trainer) -> TokenizedDataset:
        return cast("CausalLMDataModule", trainer.datamodule).prompts(self.prompts)  # type: ignore[attr-defined]


def samples_table(prompts: Sequence[str], completions: Sequence[str]) -> str:
    """Prompts and completions as Markdown.

    Args:
        prompts: What was continued.
        completions: How.

    Returns:
        One section a prompt, both texts verbatim.
    """
    sections = [
        f"**Prompt**\n\n{_verbatim(prompt)}\n\n**Completion**\n\n{_verbatim(completion)}"
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return "\n\n---\n\n".join(sections)


def _verbatim(text: str) -> str:
    """Indented as code, where Markdown and HTML mean nothing; whatever Markdown takes for a line's end begins one."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
