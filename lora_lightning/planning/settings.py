"""Reads the settings of a training that is only planned: the options of `fit`, the labels, the length of rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning import Trainer

from lora_lightning.backbones import load_config, position_limit
from lora_lightning.backbones.base_identity import TOKENIZERS
from lora_lightning.backbones.local_files import local_folder
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.datamodules.base import TRAIN, VALIDATION
from lora_lightning.errors import ConfigurationError, LoraLightningError
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import AdaptationTask, SequenceClassificationTask
from lora_lightning.training.commands import prepare_command
from lora_lightning.training.lightning_cli import LoraLightningCLI

LENGTH_OPTIONS = ("max_length", "context_length")  # of data modules
SECOND_BASE = "MergeEquivalence"
DEFAULT_LENGTH = 128  # tokens, for a data module of a user's own without such an option


class PlanningCLI(LoraLightningCLI):
    """The options of `fit`, with a trainer that trains nothing: devices and strategies may not exist here."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Creates a trainer on the CPU, whatever the options say; what they say is in `options`."""
        del kwargs
        return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=False)

    def after_instantiate_classes(self) -> None:
        """Checks nothing about devices."""


@dataclass
class PlannedTraining:
    """The settings of a training.

    Attributes:
        task: Without a model; knows its labels.
        datamodule: Of the config.
        options: Every option of `fit`.
        rows: Training rows of a step, each of `tokens` tokens.
        evaluation_rows: Rows of a batch in validation.
        tokens: Of the longest training row.
        evaluation_tokens: Of the longest row in validation.
        has_padding: Whether a batch has rows of different lengths, so that attention needs a mask.
        is_packed: Whether a row holds several documents.
        notes: Sentences on what was assumed.
    """

    task: AdaptationTask
    datamodule: AdaptationDataModule
    options: Any
    rows: int
    evaluation_rows: int
    tokens: int
    evaluation_tokens: int
    has_padding: bool
    is_packed: bool
    notes: list[str] = field(default_factory=list)

    @property
    def accumulates(self) -> bool:
        """Whether gradients of former batches are there in a backward pass."""
        return int(self.options.trainer.accumulate_grad_batches) > 1

    @property
    def callbacks(self) -> list[str]:
        """Class names in `trainer.callbacks`."""
        given = self.options.trainer.callbacks or []
        return [each.class_path.rpartition(".")[2] for each in (given if isinstance(given, list) else [given])]

    @property
    def loads_second_base(self) -> bool:
        """Whether a monitor opens the exported adapter on a fresh base after training."""
        return SECOND_BASE in self.callbacks


def read_settings(arguments: Sequence[str], num_labels: int | None = None) -> PlannedTraining:
    """Parses the options of `fit`, and reads what the data says about labels and lengths if it is there.

    Args:
        arguments: Options of `fit`, as on a command line.
        num_labels: Number of labels, for data that is not there.

    Returns:
        The settings.

    Raises:
        LoraLightningError: If an option is wrong, or the number of labels is unknown or contradicts the data.
    """
    cli = prepare_command("fit", arguments, PlanningCLI)
    task, datamodule, notes = cli.model, cli.datamodule, list[str]()
    if num_labels is not None and num_labels < 1:
        msg = f"--num-labels is {num_labels}, but it must be at least 1."
        raise ConfigurationError(msg)
    if isinstance(task, SequenceClassificationTask):
        task.adopt_labels(_labels(datamodule, num_labels, notes))
    elif num_labels is not None:
        msg = f"--num-labels is {num_labels}, but {type(task).__name__} has no labels of texts; leave it out."
        raise ConfigurationError(msg)
    if task.auto_class is not None and not has_tokenizer(task.backbone):
        task.pad_token_id = _pad_token_id(task.backbone)
    tokens, evaluation_tokens = _longest_rows(task, datamodule, notes)
    return PlannedTraining(
        task,
        datamodule,
        cli.options,
        rows=datamodule.batch_size,
        evaluation_rows=datamodule.eval_batch_size,
        tokens=tokens,
        evaluation_tokens=evaluation_tokens,
        has_padding=not hasattr(datamodule, "end_of_text") and type(datamodule).__name__ != "PlainTextDataModule",
        is_packed=bool(getattr(datamodule, "packing", False)),
        notes=notes,
    )


def has_tokenizer(backbone: str) -> bool:
    """Whether a backbone's tokenizer is on this machine."""
    folder = local_folder(backbone)
    if folder is None:
        return False
    return any((folder / name).is_file() for name in TOKENIZERS) or any(folder.glob("*.gguf"))


def _pad_token_id(backbone: str) -> int:
    """The padding token according to config.json; which token it is changes no shape."""
    found = getattr(load_config(backbone).get_text_config(), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else 0


def _labels(datamodule: AdaptationDataModule, num_labels: int | None, notes: list[str]) -> LabelSpace:
    try:
        space = datamodule.label_space
    except LoraLightningError as error:
        if num_labels is None:
            msg = f"{str(error).rstrip('.')}. To plan without the data, give --num-labels."
            raise ConfigurationError(msg) from error
        space = None
    if space is None:
        if num_labels is None:
            msg = f"{type(datamodule).__name__} does not say how many labels there are; give --num-labels."
            raise ConfigurationError(msg)
        notes.append(f"The data was not read: {num_labels} labels are assumed, as --num-labels says.")
        return LabelSpace([f"label {index}" for index in range(num_labels)])
    if num_labels not in {None, len(space.names)}:
        msg = f"--num-labels is {num_labels}, but the data has {len(space.names)} labels; leave --num-labels out."
        raise ConfigurationError(msg)
    return space


def _longest_rows(task: AdaptationTask, datamodule: AdaptationDataModule, notes: list[str]) -> tuple[int, int]:
    """Tokens of the longest row in training and in validation, or those that the options allow without the data."""
    if task.auto_class is None:
        return 1, 1
    allowed = next((getattr(datamodule, name) for name in LENGTH_OPTIONS if hasattr(datamodule, name)), DEFAULT_LENGTH)
    limit = position_limit(load_config(task.backbone))
    allowed = allowed if limit is None else min(allowed, limit)
    why = "its tokenizer is not on this machine"
    if has_tokenizer(task.backbone):
        try:
            datamodule.setup("fit")
        except LoraLightningError as error:
            why = str(error).rstrip(".")
        else:
            longest = [
                max((int(datamodule.splits[name].lengths.max()) for name in datamodule.split_names(stage)), default=0)
                for stage in (TRAIN, VALIDATION)
            ]
            return longest[0], longest[1] or longest[0]
    notes.append(f"Rows of {allowed} tokens are assumed, the most that the options allow, because {why}.")
    return allowed, allowed
