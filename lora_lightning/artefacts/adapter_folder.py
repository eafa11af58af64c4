"""Opens a bare PEFT folder on its base model, with the data that the user gives or with random tokens."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import transformers
from lightning import Trainer
from peft import PeftModel, load_peft_weights
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lora_lightning.artefacts.adapter_config import AdapterConfig, read_adapter_config
from lora_lightning.artefacts.data_options import check_data_module, keep_data_options
from lora_lightning.artefacts.finished_run import opened_task
from lora_lightning.artefacts.observers import RandomTokenObserver
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.backbones import (
    LoadedBackbone,
    load_classification_config,
    load_config,
    load_question_answerer,
    load_question_answering_config,
    load_sequence_classifier,
    load_tokenizer,
)
from lora_lightning.backbones.causal_language_modeling import load_causal_lm_config
from lora_lightning.backbones.export import CONFIG_FOLDER, QUANTIZATION
from lora_lightning.backbones.finished_head import output_layer_name
from lora_lightning.backbones.loading import build_without_storage, load_model, load_quantized_model
from lora_lightning.backbones.model_card import CLASSIFIER, LANGUAGE_MODEL, QUESTION_ANSWERER
from lora_lightning.errors import CheckpointError, ConfigurationError, VerificationError
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.parameter_names import is_factor_b, pretrained_name
from lora_lightning.lora.quantized import keep_4bit_weights_in_order
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.commands import prepare_command, silence_other_packages
from lora_lightning.training.fitting import check_same_labels

TASKS = {
    CLASSIFIER: "SequenceClassificationTask",
    QUESTION_ANSWERER: "QuestionAnsweringTask",
    LANGUAGE_MODEL: "CausalLanguageModelingTask",
}
FILES = ("labels.json", "question_answering.json")  # of a run's export, for whoever serves the model


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
    weights = _read_weights(folder)
    files = {name: content for name in FILES if (content := config.file(name)) is not None}
    words = keep_data_options(arguments)
    if not words:
        return _open_without_data(config, weights, files)
    check_data_module(words)
    task, datamodule = _prepare_task(config, words)
    space = datamodule.label_space
    if config.auto_class == CLASSIFIER:
        if space is None:
            msg = f"{folder} is a classifier, but {type(datamodule).__name__} has no labels; choose other data."
            raise ConfigurationError(msg)
        check_same_labels(_label_space(config, weights), space, str(folder))
    if space is not None:
        task.adopt_labels(space)
    task.check_data(datamodule)
    tokenizer = _tokenizer(config)
    task.network = _load(config, weights, space, tokenizer)
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
    notes = _tokenizer_notes(tokenizer, datamodule.tokenizer)
    opened = opened_task(folder, task, trainer, datamodule, notes=notes)
    return replace(opened, backbone=config.base, tokenizer=tokenizer, files={**opened.files, **files})


def _tokenizer_notes(own: PreTrainedTokenizerBase, of_base: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The data module knows the base model alone."""
    if own.get_vocab() == of_base.get_vocab() and own.chat_template == of_base.chat_template:
        return ()
    return ("the data was read with the base model's tokenizer, and the adapter has another one.",)


def _prepare_task(config: AdapterConfig, words: Sequence[str]) -> tuple[AdaptationTask, Any]:
    fixed = [f"--model={TASKS[config.auto_class]}", f"--model.backbone={config.base}", "--model.lora=null"]
    cli = prepare_command("fit", [*fixed, "--trainer.logger=false", *words])
    return cli.model, cli.datamodule


def _open_without_data(config: AdapterConfig, weights: Mapping[str, Tensor], files: Mapping[str, Any]) -> OpenedAdapter:
    tokenizer = _tokenizer(config)
    network = _load(config, weights, _label_space(config, weights), tokenizer)
    observer = RandomTokenObserver(network, tokenizer.all_special_ids)
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
    )


def _tokenizer(config: AdapterConfig) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer, which may have a chat template; else the base model's."""
    if (config.folder / "tokenizer_config.json").is_file():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(config.folder), local_files_only=True)
        return tokenizer
    return load_tokenizer(config.base)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu", local_files_only=True)
    except Exception as error:  # a damaged or missing file makes safetensors, torch and the hub's client raise anything
        why = " ".join(str(error).split())[:150]
        msg = f"the weights in {folder} cannot be read ({why}); export the adapter again."
        raise CheckpointError(msg) from error
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        msg = f"{folder}: {broken[0]} is not finite; use another adapter."
        raise CheckpointError(msg)
    return weights


def _label_space(config: AdapterConfig, weights: Mapping[str, Tensor]) -> LabelSpace | None:
    """The labels of a classifier: as its run wrote them, as its configuration has them, or numbered."""
    if config.auto_class != CLASSIFIER:
        return None
    if (saved := config.file("labels.json")) is not None:
        index = saved.get("out_of_scope_index")
        return LabelSpace(saved["names"], index, "out_of_scope_threshold" in saved, problem_type=saved["problem_type"])
    if (saved := config.file(f"{CONFIG_FOLDER}/config.json")) is not None and "id2label" in saved:
        return LabelSpace([saved["id2label"][str(number)] for number in range(len(saved["id2label"]))])
    plain = build_without_storage(transformers.AutoModelForSequenceClassification, load_config(config.base))
    head = {pretrained_name(name): tensor for name, tensor in weights.items()}.get(f"{output_layer_name(plain)}.weight")
    return None if head is None else LabelSpace([f"LABEL_{number}" for number in range(len(head))])


def _load(
    config: AdapterConfig,
    weights: Mapping[str, Tensor],
    labels: LabelSpace | None,
    tokenizer: PreTrainedTokenizerBase,
) -> PeftModel:
    loaded = _load_base(config, labels, tokenizer)
    _check_head(config, loaded.lacked, loaded.model, weights)
    _resize_vocabulary(loaded.model, weights)
    loaded.model.requires_grad_(requires_grad=False)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            network = PeftModel.from_pretrained(loaded.model, str(config.folder), torch_device="cpu")
    except Exception as error:  # PEFT raises many kinds for an adapter that does not fit
        msg = f"{config.folder} does not fit its base model {config.base}: {' '.join(str(error).split())[:250]}"
        raise CheckpointError(msg) from error
    lost = [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]
    _check_same_layers(config, network, weights, lost)
    keep_4bit_weights_in_order(network)
    network.eval()
    return network


def _load_base(config: AdapterConfig, labels: LabelSpace | None, tokenizer: PreTrainedTokenizerBase) -> LoadedBackbone:
    pad = cast("int", tokenizer.pad_token_id or 0)
    base_config: PretrainedConfig
    if config.auto_class == CLASSIFIER:
        if labels is None:
            msg = (
                f"{config.folder} has no head and no labels, so the merged model would have a random head; name the "
                "head in modules_to_save and train again."
            )
            raise VerificationError(msg)
        base_config = load_classification_config(config.base, labels.names, pad, None, labels.problem_type)
    elif config.auto_class == QUESTION_ANSWERER:
        base_config = load_question_answering_config(config.base, pad)
    else:
        base_config = load_causal_lm_config(config.base)
    if (quantization := config.file(QUANTIZATION)) is not None:
        settings = BitsAndBytesConfig.from_dict(quantization)
        return load_quantized_model(getattr(transformers, config.auto_class), config.base, base_config, settings)
    if config.auto_class == CLASSIFIER:
        return load_sequence_classifier(config.base, base_config)
    if config.auto_class == QUESTION_ANSWERER:
        return load_question_answerer(config.base, base_config)
    return load_model(transformers.AutoModelForCausalLM, config.base, base_config)


def _check_head(
    config: AdapterConfig, lacked: Collection[str], model: PreTrainedModel, weights: Mapping[str, Tensor]
) -> None:
    """The base has no weights for a new head, so the adapter must have them."""
    saved = {pretrained_name(name) for name in weights}
    for module in lacked:
        for name, _ in model.get_submodule(module).named_parameters():
            if f"{module}.{name}" not in saved:
                msg = (
                    f"{config.folder} has no weights for {module}.{name}, which its base model {config.base} lacks "
                    "too, so the merged model would have a random head; name it in modules_to_save and train again."
                )
                raise VerificationError(msg)


def _resize_vocabulary(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Gives the base as many tokens as the embeddings in the adapter have, such as those of a chat template."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    saved = next((tensor for key, tensor in weights.items() if pretrained_name(key) == f"{name}.weight"), None)
    if saved is not None and len(saved) != len(cast("Tensor", embeddings.weight)):
        model.resize_token_embeddings(len(saved), mean_resizing=False)


def _check_same_layers(
    config: AdapterConfig, network: PeftModel, weights: Mapping[str, Tensor], lost: Sequence[str]
) -> None:
    """PEFT only warns of layers without weights, and says nothing of weights without a layer."""
    if lost:
        msg = (
            f"{config.folder} lacks weights of layers that its base model {config.base} has: "
            f"{' '.join(lost[0].partition('keys')[2].split())[:200]}; the adapter is incomplete or for another base."
        )
        raise CheckpointError(msg)
    updates = sum(is_factor_b(f"{name}.") and not name.endswith(".bias") for name in weights)  # AdaLoRA has no `weight`
    layers = sum(bool(layer.lora_B) for layer in adapted_layers(network).values())
    if updates != layers:
        msg = (
            f"{config.folder} holds updates of {updates} layers, of which its base model {config.base} has {layers}; "
            "it was trained on another base."
        )
        raise ConfigurationError(msg)
