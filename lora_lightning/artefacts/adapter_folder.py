"""Opens a bare PEFT folder on its base model, with the data that the user gives or with random tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Trainer
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lora_lightning.artefacts.adapter_network import load_adapter
from lora_lightning.artefacts.data_options import check_data_module, keep_data_options
from lora_lightning.artefacts.finished_run import opened_task
from lora_lightning.artefacts.observers import RandomTokenObserver
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.saved_threshold import decision_options, saved_threshold
from lora_lightning.backbones import load_tokenizer
from lora_lightning.backbones.adapter_config import ANSWERS, AdapterConfig, read_adapter_config
from lora_lightning.backbones.adapter_labels import LABELS, has_numbered_names, read_label_space
from lora_lightning.backbones.adapter_weights import read_adapter_weights
from lora_lightning.backbones.base_identity import BaseIdentity
from lora_lightning.backbones.finished_head import plain_label
from lora_lightning.backbones.loading import set_padding_token
from lora_lightning.backbones.model_card import CLASSIFIER, LANGUAGE_MODEL, QUESTION_ANSWERER
from lora_lightning.backbones.saved_base import BASE_MODEL
from lora_lightning.datamodules.base import VALIDATION
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.commands import prepare_command, silence_other_packages
from lora_lightning.training.fitting import check_same_labels

TASKS = {
    CLASSIFIER: "SequenceClassificationTask",
    QUESTION_ANSWERER: "QuestionAnsweringTask",
    LANGUAGE_MODEL: "CausalLanguageModelingTask",
}
Notes = tuple[str, ...]
FILES = (LABELS, ANSWERS)  # of a run's export, for whoever serves the model


def open_adapter_folder(folder: Path, arguments: Sequence[str] = ()) -> OpenedAdapter:
    """Loads an adapter on its base model.

    Args:
        folder: A PEFT folder.
        arguments: Options of the data; none for random tokens.

    Returns:
        The adapter model.

    Raises:
        LoraLightningError: If the adapter, its base or the data is wrong or they do not belong together.
        VerificationError: If the head of a classifier or question answerer is missing.
    """
    silence_other_packages()
    config = read_adapter_config(folder)
    weights = read_adapter_weights(folder)
    files = {name: content for name in FILES if (content := config.file(name)) is not None}
    words = keep_data_options(arguments)
    if not words:
        return _open_without_data(config, weights, files)
    check_data_module(words)
    task, datamodule = _prepare_task(config, words)
    space = datamodule.label_space
    labels, label_notes = space, Notes()
    if config.auto_class == CLASSIFIER:
        if space is None:
            msg = f"{folder} is a classifier, but {type(datamodule).__name__} has no labels; choose other data."
            raise ConfigurationError(msg)
        labels, label_notes = _check_labels(config, read_label_space(config, weights), space)
    if labels is not None:
        task.adopt_labels(labels)
    task.check_data(datamodule)
    threshold = saved_threshold(config, task.threshold_name)
    task.set_threshold(threshold)
    tokenizer = _tokenizer(config)
    task.network, notes = load_adapter(config, weights, labels, tokenizer)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.validate(task, datamodule=datamodule, verbose=False)
    for split in datamodule.split_names(VALIDATION) if threshold is None else ():
        task.choose_threshold(split)
    notes = (*_base_notes(config), *notes, *label_notes, *_tokenizer_notes(tokenizer, datamodule.tokenizer))
    if threshold is None and task.threshold is not None:
        notes = (*notes, f"the adapter has no {task.threshold_name}; {task.threshold:.4g} was chosen on these rows.")
    opened = opened_task(folder, task, trainer, datamodule, notes=notes)
    files = {**files, **opened.files} if threshold is None else {**opened.files, **files}
    return replace(opened, backbone=config.base, tokenizer=tokenizer, files=files)


def _check_labels(config: AdapterConfig, own: LabelSpace | None, space: LabelSpace) -> tuple[LabelSpace, Notes]:
    """The labels of the merged model.

    Names of the adapter are compared without case and surrounding spaces, as everywhere, and stay as they are; labels
    that have numbers for names can only be counted, and get the names of the data.
    """
    if own is None or own.problem_type != space.problem_type:
        check_same_labels(own, space, str(config.folder))
        return space, ()
    if not has_numbered_names(own):
        if [plain_label(name) for name in own.names] != [plain_label(name) for name in space.names]:
            check_same_labels(own, space, str(config.folder))
        return replace(space, names=own.names), ()
    if len(own.names) != len(space.names):
        msg = f"{config.folder} has {len(own.names)} labels, but the data has {len(space.names)}; choose other data."
        raise ConfigurationError(msg)
    names = ", ".join(space.names)[:200]
    return space, (f"the adapter's labels have no names; those of the data are given to them: {names}.",)


def _base_notes(config: AdapterConfig) -> tuple[str, ...]:
    if BaseIdentity.from_saved(config.file(f"{BASE_MODEL}.json")) is not None:
        return ()
    return (f"it is not known whether {config.base} is still the base model that the adapter was trained on.",)


def _tokenizer_notes(own: PreTrainedTokenizerBase, of_base: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The data module knows the base model alone."""
    if own.get_vocab() == of_base.get_vocab() and own.chat_template == of_base.chat_template:
        return ()
    return ("the data was read with the base model's tokenizer, and the adapter has another one.",)


def _prepare_task(config: AdapterConfig, words: Sequence[str]) -> tuple[AdaptationTask, Any]:
    fixed = [f"--model={TASKS[config.auto_class]}", f"--model.backbone={config.base}", "--model.lora=null"]
    cli = prepare_command("fit", [*fixed, *decision_options(config), "--trainer.logger=false", *words])
    return cli.model, cli.datamodule


def _open_without_data(config: AdapterConfig, weights: Mapping[str, Tensor], files: Mapping[str, Any]) -> OpenedAdapter:
    tokenizer = _tokenizer(config)
    network, notes = load_adapter(config, weights, read_label_space(config, weights), tokenizer)
    observer = RandomTokenObserver(network, {*_added_token_ids(tokenizer), *_trained_token_ids(network)})
    rows = sum(len(batch["input_ids"]) for batch in observer.batches)
    return OpenedAdapter(
        source=config.folder,
        network=network,
        backbone=config.base,
        auto_class=config.auto_class,
        tokenizer=tokenizer,
        observer=observer,
        files=files,
        measured_on=f"{rows} rows of random tokens",
        notes=(*_base_notes(config), *notes),
    )


def _added_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of special tokens and of those that were added, such as a chat template's."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def _trained_token_ids(network: PeftModel) -> set[int]:
    """Ids of the adapter's `trainable_token_indices`, which are a list, or lists by the name of the embedding."""
    found = getattr(network.peft_config[ADAPTER], "trainable_token_indices", None) or []
    lists = found.values() if isinstance(found, Mapping) else [found]
    return {int(token) for each in lists for token in each}


def _tokenizer(config: AdapterConfig) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer, which may have a chat template; else the base model's."""
    if not (config.folder / "tokenizer_config.json").is_file():
        return load_tokenizer(config.base)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(config.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged file makes transformers raise anything
        msg = (
            f"the tokenizer in {config.folder} cannot be loaded ({' '.join(str(error).split())[:150]}); save it again, "
            "or delete its tokenizer_config.json to use the base model's tokenizer."
        )
        raise CheckpointError(msg) from error
    set_padding_token(tokenizer, str(config.folder))
    return tokenizer
