"""Measures the loss on a text that is not part of the training data: what a language model forgets."""

from typing import cast

from lightning import LightningModule, Trainer

from lora_lightning.backbones import load_config, position_limit
from lora_lightning.callbacks.adapter_monitor import TOTAL, AdapterMonitor, Measurement
from lora_lightning.datamodules.batching import TokenizedDataset
from lora_lightning.datamodules.plain_text import PlainTextDataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.all_rows import WeightedMean
from lora_lightning.tasks import CausalLanguageModelingTask
from lora_lightning.tasks.held_out_batches import isolated_evaluation, on_device, validation_precision


class OtherTextLoss(AdapterMonitor):
    """Measures a language model's loss on another text, such as WikiText-2 while it is trained on instructions.

    `other_text/all/loss` is the mean cross entropy per token in nats, as `val/loss` is: where it rises above its first
    value, the model forgets. It is measured before the first step, too.

    Args:
        text_file: A text file, or records with a `text` as `PlainTextDataModule` reads them.
        every_n_steps: Optimizer steps between measurements; `null` measures at each validation.
        context_length: Tokens in a block. Each token is predicted from the ones before it in its block.
        max_tokens: The first so many tokens of the file are used, in complete blocks; at least one block.
        batch_size: Blocks in a batch.
    """

    table = "other_text_loss"
    tag = "other_text/all"

    def __init__(
        self,
        text_file: str,
        every_n_steps: int | None = None,
        context_length: int = 512,
        max_tokens: int = 16384,
        batch_size: int = 4,
    ) -> None:
        super().__init__(every_n_steps)
        for name, value in {
            "context_length": context_length,
            "max_tokens": max_tokens,
            "batch_size": batch_size,
        }.items():
            if value < 1:
                msg = f"OtherTextLoss.{name} is {value}, but it must be at least 1."
                raise ConfigurationError(msg)
        self.text_file = text_file
        self.context_length = context_length
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self._rows: TokenizedDataset | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the task, and reads and tokenizes the text before any weights load.

        Raises:
                ConfigurationError: If the task is not a `CausalLanguageModelingTask`, or a block is longer than its
                backbone allows.
            DataError: If the file cannot be read or is empty.
        """
        del trainer
        if stage != "fit":
            return
        if not isinstance(pl_module, CausalLanguageModelingTask):
            msg = f"the callback OtherTextLoss needs a CausalLanguageModelingTask, not {type(pl_module).__name__}."
            raise ConfigurationError(msg)
        backbone, length = pl_module.backbone, self.context_length
        limit = position_limit(load_config(backbone))
        if limit is not None and length > limit:
            msg = f"OtherTextLoss.context_length is {length}, but {backbone} has {limit} positions."
            raise ConfigurationError(msg)
        text = self.text_file
        # Given as validation data, too, so that no part of it is held out.
        data = PlainTextDataModule(
            train_file=text, validation_file=text, context_length=length, backbone=backbone, batch_size=self.batch_size
        )
        self._rows = TokenizedDataset(data.encode_examples(data.read_splits()["val"]), data.padding())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the model before its first step."""
        super().on_train_start(trainer, pl_module)
        if not trainer.global_step:
            self.publish(trainer, 0, self.measure(trainer, pl_module))

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Computes the loss with the weights that the model has now."""
        task, rows = cast("CausalLanguageModelingTask", pl_module), cast("TokenizedDataset", self._rows)
        count = min(len(rows), max(1, self.max_tokens // self.context_length))
        mean = WeightedMean().to(task.device)
        mean.sync_on_compute = False  # every process sees the same blocks
        with isolated_evaluation(task), validation_precision(trainer):
            for start in range(0, count, self.batch_size):
                batch = on_device(trainer, rows[range(start, min(count, start + self.batch_size))])
                loss, _, labels = task.condense(batch, task.evaluate(batch))
                mean.update(loss / labels, weight=labels)
        return [Measurement(TOTAL, "loss", float(mean.compute()))]
