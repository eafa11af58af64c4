"""An adapter on its base, ready to be compared and merged, wherever it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.artefacts.observers import Observer
from lora_lightning.backbones.base_model_id import NamedBase


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter model with what a merged folder of it needs.

    Attributes:
        source: The run or the adapter folder.
        network: The adapter on its base, in evaluation mode.
        backbone: Hub id, folder or `package://` name of the base.
        auto_class: Name of the transformers class that loads the merged folder.
        tokenizer: Goes into the merged folder; `None` if the model reads no text.
        observer: The examples to compare on.
        files: Values to write as JSON, by file name.
        measured_on: What the examples are, in words.
        datasets: Hub ids of the data, for the model card.
        monitor: The metric that decided which checkpoint is best; `None` if unknown.
        named_base: The id of the base that a run's own export has; `None` without one.
        notes: Sentences for the user.
    """

    source: Path
    network: PeftModel
    backbone: str
    auto_class: str
    tokenizer: PreTrainedTokenizerBase | None
    observer: Observer
    files: Mapping[str, Any]
    measured_on: str
    datasets: tuple[str, ...] = ()
    monitor: str | None = None
    named_base: NamedBase | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, adapters in place."""
        return cast("PreTrainedModel", self.network.get_base_model())
