"""Shows a few generated texts, for what metrics cannot show."""

from collections.abc import Sequence
from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lora_lightning.datamodules.batching import TokenizedDataset
from lora_lightning.datamodules.causal_language_modeling import CausalLMDataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.loggers import boards_of
from lora_lightning.lora.sharding import is_sharded
from lora_lightning.tasks import CausalLanguageModelingTask


class GeneratedSamples(Callback):
    """Generates from the same prompts after each validation, with `model.generation`'s settings.

    The texts are shown in TensorBoard, W&B or MLflow, or written beside the table of `CSVLogger`. Without such a logger
    nothing is generated, and a warning says so.

    Args:
        prompts: Texts to continue, or instructions to respond to.
        seed: Seed for sampling if `model.generation.do_sample` is true; training's random numbers do not change.
    """

    def __init__(self, prompts: list[str], seed: int = 0) -> None:
        if not prompts or not all(prompt.strip() for prompt in prompts):
            msg = "GeneratedSamples.prompts must contain at least one prompt, and no empty one."
            raise ConfigurationError(msg)
        self.prompts = prompts
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the task and the length of the prompts before any weights load.

        Raises:
            ConfigurationError: If the task is not a `CausalLanguageModelingTask`, or a prompt is so long that no
                completion fits the model's positions.
        """
        if not isinstance(pl_module, CausalLanguageModelingTask):
            msg = f"the callback GeneratedSamples needs a CausalLanguageModelingTask, not {type(pl_module).__name__}."
            raise ConfigurationError(msg)

        if stage == "fit":
            if trainer.is_global_zero and not any(board.shows_texts for board in boards_of(trainer)):
                rank_zero_warn("GeneratedSamples generates nothing: no logger of this run shows texts.")
            places = [f"GeneratedSamples, prompt {number}" for number in range(1, len(self.prompts) + 1)]
            pl_module.check_lengths(self._rows(trainer).lengths.tolist(), places)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generates completions and logs them."""
        has_boards = any(board.shows_texts for board in boards_of(trainer))
        task = cast("CausalLanguageModelingTask", pl_module)
        takes_part = trainer.is_global_zero or is_sharded(task)  # shards are gathered from every process
        if trainer.sanity_checking or not trainer.strategy.broadcast(has_boards) or not takes_part:
            return
        with isolate_rng():
            torch.manual_seed(self.seed)
            completions = task.complete(self._batch(trainer, task))
        for board in boards_of(trainer):
            board.add_text("samples", samples_table(self.prompts, completions), trainer.global_step)

    def _batch(self, trainer: Trainer, task: CausalLanguageModelingTask) -> dict[str, Tensor]:
        rows = self._rows(trainer)
        return {name: tensor.to(task.device) for name, tensor in rows[range(len(rows))].items()}

    def _rows(self, trainer: Trainer) -> TokenizedDataset:
        return cast("CausalLMDataModule", trainer.datamodule).prompts(self.prompts)  # type: ignore[attr-defined]


def samples_table(prompts: Sequence[str], completions: Sequence[str]) -> str:
    """Formats prompts and completions as Markdown.

    Args:
        prompts: The prompts.
        completions: The completion of each prompt.

    Returns:
        A section for each prompt, with both texts verbatim.
    """
    sections = [
        f"**Prompt**\n\n{_verbatim(prompt)}\n\n**Completion**\n\n{_verbatim(completion)}"
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return "\n\n---\n\n".join(sections)


def _verbatim(text: str) -> str:
    """Indents a text as code, so that Markdown and HTML in it are not interpreted."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
