"""Opens the best checkpoint of a run, with the run's validation data."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from lora_lightning.artefacts.data_options import keep_run_options
from lora_lightning.artefacts.observers import ValidationObserver
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.backbones.base_model_id import saved_base_name
from lora_lightning.backbones.model_card import auto_class_of
from lora_lightning.backbones.saved_base import REMEDY
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.datamodules.base import TEST, VALIDATION
from lora_lightning.errors import BackboneError, CheckpointError, ConfigurationError
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.runs.record import RunRecord
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.held_out_batches import validation_batches
from lora_lightning.training.api import run_arguments
from lora_lightning.training.commands import prepare_command
from lora_lightning.training.evaluation import score_split
from lora_lightning.training.fitting import check_same_labels
from lora_lightning.training.lightning_cli import LoraLightningCLI
from lora_lightning.training.same_data import check_evaluated_rows

# How the run was trained must not decide how its adapter is compared: one process, float32, nothing but the model.
PLAIN_TRAINER = {
    "trainer.accelerator": "auto",  # the run's GPU may not be here
    "trainer.callbacks": None,
    "trainer.devices": 1,
    "trainer.enable_progress_bar": False,
    "trainer.fast_dev_run": False,
    "trainer.limit_val_batches": 1.0,
    "trainer.logger": False,
    "trainer.num_nodes": 1,
    "trainer.plugins": None,
    "trainer.precision": "32-true",
    "trainer.profiler": None,
    "trainer.strategy": "auto",
}


def open_run(folder: Path, arguments: Sequence[str] = (), *, validates: bool = True) -> OpenedAdapter:
    """Loads the best checkpoint of a run.

    Args:
        folder: The run folder.
        arguments: As in `prepare_run`.
        validates: As in `prepare_run`.

    Returns:
        The adapter model.

    Raises:
        LoraLightningError: As `prepare_run`.
    """
    return prepare_run(folder, arguments, validates=validates).open()


@dataclass(frozen=True)
class PreparedRun:
    """A run whose settings and data are known to be usable, before any weights load.

    Attributes:
        record: The run.
        cli: Its validation, parsed.
    """

    record: RunRecord
    cli: LoraLightningCLI

    @property
    def task(self) -> AdaptationTask:
        """Knows the labels; its network is not built yet."""
        return self.cli.model

    @property
    def datamodule(self) -> AdaptationDataModule:
        """Has read its rows."""
        return self.cli.datamodule

    @property
    def monitor(self) -> str | None:
        """The metric that chose the best checkpoint, with its split; of a run that did not end that of its settings."""
        return self.record.monitor or self.record.flat_settings.get("checkpoint.monitor")

    def open(self) -> OpenedAdapter:
        """Loads the best checkpoint.

        Returns:
            The adapter model.

        Raises:
            LoraLightningError: If the base does not fit, or has changed.
        """
        cli = self.cli
        score_split(cli, "validate")
        notes = []
        if cli.start.base is None:
            backbone = cli.model.backbone
            notes = [f"it is not known whether {backbone} is still the base model that the adapter was trained on."]
        opened = opened_task(self.record.folder, cli.model, cli.trainer, cli.datamodule, self.monitor, tuple(notes))
        return replace(opened, named_base=saved_base_name(self.record.adapter))


def prepare_run(
    folder: Path, arguments: Sequence[str] = (), *, validates: bool = True, needs_test: bool = False
) -> PreparedRun:
    """Checks a run and its data; no weights are loaded yet.

    Args:
        folder: The run folder.
        arguments: Options of the data, and `--model.backbone`, that override those of the run, as on a command line.
        validates: Whether the adapter is validated once it is opened; thresholds are those of the checkpoint anyway.
        needs_test: Whether data without test rows is refused.

    Returns:
        What opens it.

    Raises:
        LoraLightningError: If the run has no checkpoint or no adapter, or if its base or its data is not there any
            more, has changed or lacks rows.
    """
    record = RunRecord.load(folder)
    if record.state != "finished":
        warnings.warn(
            f"the run {folder} is {record.state}{record.reason and ': ' + record.reason}; its best checkpoint so far "
            "is used.",
            stacklevel=2,
        )
    # What judges ranks refuses rows that the run may have been trained on; a comparison of weights may use them.
    settings = PLAIN_TRAINER | {"trainer.limit_val_batches": 1.0 if validates else 0, "allow_changed_data": True}
    words = [*run_arguments(record, settings), *keep_run_options(arguments)]
    cli = _prepare(words)
    if getattr(cli.model, "lora", None) is None:
        whole = f"{record.adapter} is a complete transformers folder already."
        if record.adapter is None:
            whole = "it trains the whole model, which is exported once the run has finished."
        msg = f"the run {folder} has no adapter (model.lora: null); {whole}"
        raise CheckpointError(msg)
    for stage in ("validate", "test") if needs_test else ("validate",):
        cli.datamodule.check_splits(stage)
        if not validates:
            kind = TEST if stage == "test" else VALIDATION
            check_evaluated_rows(folder, cli.datamodule, kind, "choose another run")
    labels = cli.datamodule.label_space
    check_same_labels(cli.start.labels, labels, cli.options.ckpt_path)
    if labels is not None and getattr(cli.model, "label_space", None) is None:
        cli.model.adopt_labels(labels)
    return PreparedRun(record, cli)


def _prepare(words: Sequence[str]) -> LoraLightningCLI:
    """Prepares a validation; an error about the base names the option that merge has."""
    try:
        return prepare_command("validate", words)
    except CheckpointError as error:
        if REMEDY not in str(error):
            raise
        remedy = "Give the folder of the model that it was trained on with --model.backbone."
        raise CheckpointError(str(error).replace(REMEDY, remedy)) from error
    except BackboneError as error:
        msg = f"{str(error).removesuffix('.')}. If the base model has moved, give its folder with --model.backbone."
        raise BackboneError(msg) from error


def opened_task(
    source: Path,
    task: AdaptationTask,
    trainer: Any,
    datamodule: Any,
    monitor: str | None = None,
    notes: tuple[str, ...] = (),
) -> OpenedAdapter:
    """Wraps a task that a trainer has validated.

    Args:
        source: Where the adapter came from.
        task: Its network is the adapter model.
        trainer: Has validated it.
        datamodule: Has the data.
        monitor: The metric that decided which checkpoint is best.
        notes: Sentences for the user.

    Returns:
        The adapter model with all batches of the validation splits.

    Raises:
        ConfigurationError: If it has no adapter, or if transformers has no class that would load the merged folder.
    """
    task.to(trainer.strategy.root_device)
    network = task.built_network
    auto_class = auto_class_of(task.transformers_model)
    if not isinstance(network, PeftModel) or not adapted_layers(network) or auto_class is None:
        kind = type(task.transformers_model).__name__
        msg = (
            f"{source} holds a {kind} without an adapter, or of another kind than text classifiers, question answerers "
            "and causal language models of transformers; choose another run."
        )
        raise ConfigurationError(msg)
    batches = validation_batches(trainer)
    rows = sum(len(next(iter(batch.values()))) for found in batches.values() for batch in found)
    return OpenedAdapter(
        source=source,
        network=network,
        backbone=task.backbone,
        auto_class=auto_class,
        tokenizer=datamodule.tokenizer,
        observer=ValidationObserver(task, trainer, batches),
        files=task.export_files(),
        measured_on=f"{' and '.join(batches)} of {type(datamodule).__name__}, {rows} rows",
        datasets=() if datamodule.hub_dataset is None else (datamodule.hub_dataset,),
        monitor=monitor,
        notes=notes,
    )
