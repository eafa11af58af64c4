"""Load a pretrained model and its tokenizer, and say what the checkpoint lacked."""

import importlib.util
import inspect
import io
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lora_lightning.backbones.completeness import check_complete, check_gguf_layers
from lora_lightning.backbones.head_modules import modules_beside_base
from lora_lightning.backbones.quantization import (
    Quantization,
    bitsandbytes_config,
    check_quantization,
    warn_of_unquantized_weights,
)
from lora_lightning.backbones.remote_code import runs_remote_code
from lora_lightning.backbones.rotary_frequencies import reset_frequencies_after_each_pass
from lora_lightning.backbones.source import gguf_file_of, hub_is_reachable, not_found, resolve_backbone
from lora_lightning.backbones.vocabulary import text_config_of, vocabulary_size
from lora_lightning.compat.glibc import give_back_free_memory
from lora_lightning.compat.transformers import Conv1D, forget_quantization, forget_renamed_weights
from lora_lightning.errors import BackboneError, LoraLightningError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.families import FAMILIES
from lora_lightning.lora.injection import modules_trained_in_full
from lora_lightning.lora.quantized import keep_biases_as_they_are
from lora_lightning.lora.targets import find_targets
from lora_lightning.lora.weight_tying import check_weight_tying
from lora_lightning.metrics.label_space import SINGLE_LABEL, ProblemType

# Probabilities that a configuration keeps for a head of its own, or for leaving out complete layers.
NOT_OF_THE_BASE = {
    "classifier_dropout",
    "classifier_dropout_prob",
    "layerdrop",
    "qa_dropout",
    "seq_classif_dropout",
    "summary_first_dropout",
}

# No model has more; a config.json that claims more would take all time or memory before anything else is wrong with it.
MOST_LAYERS = 10_000
MOST_PARAMETERS = 10**13

LONG_TO_READ = 2**30  # bytes of safetensors

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class LoadedBackbone:
    """A pretrained model with what its checkpoint lacked.

    Attributes:
        model: The transformers model, on the CPU unless it was quantized elsewhere.
        lacked: Dotted names of the modules that are not as in the checkpoint: new and random (the head, often a
            pooler), or reordered.
        notice: What to tell the user before training, in a sentence; empty for nothing.
    """

    model: PreTrainedModel
    lacked: list[str]
    notice: str = ""


def load_tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer, padding on the right and always with a padding token.

    Args:
        backbone: Hub id, folder or `package://` name.

    Returns:
        The tokenizer; where the model has no padding token, its end-of-text token serves.

    Raises:
        BackboneError: If it cannot be found, is empty, or has no token to pad with.
    """
    source = resolve_backbone(backbone)
    tokenizer: PreTrainedTokenizerBase = _load(
        backbone, lambda: AutoTokenizer.from_pretrained(source, **_where(source))
    )
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 2:  # a word marker may be there too
        # transformers makes an empty one where the files are missing: every word would be unknown.
        msg = f"the backbone {backbone!r} has no tokenizer; save one next to the model with save_pretrained."
        raise BackboneError(msg)
    tokenizer.padding_side = "right"
    set_padding_token(tokenizer, backbone)
    return tokenizer


def set_padding_token(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Lets the end-of-text or unknown token pad if a tokenizer has no padding token.

    Args:
        tokenizer: Changed in place.
        source: What it was loaded from, for the message.

    Raises:
        BackboneError: If it has none of these tokens.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        msg = f"the tokenizer of {source!r} has no padding, end or unknown token; add one and save it again."
        raise BackboneError(msg)


def load_config(backbone: str) -> PretrainedConfig:
    """Reads the architecture as it was saved.

    Args:
        backbone: Hub id, folder or `package://` name.

    Returns:
        The configuration.

    Raises:
        BackboneError: If it cannot be found.
    """
    source = resolve_backbone(backbone)
    config: PretrainedConfig = _load(backbone, lambda: AutoConfig.from_pretrained(source, **_where(source)))
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and not 0 < layers <= MOST_LAYERS:
        msg = f"the config.json of {backbone!r} has {layers} layers, but a model has 1 to {MOST_LAYERS}; fix it."
        raise BackboneError(msg)
    return config


def uses_token_types(config: PretrainedConfig) -> bool:
    """Whether the model tells the first text of a pair from the second by an embedding, as BERT does.

    Args:
        config: The architecture.

    Returns:
        False for models that only see the separator, such as RoBERTa (one type) and DistilBERT (none).
    """
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def position_limit(config: PretrainedConfig) -> int | None:
    """The longest row that the model was made for.

    Args:
        config: The architecture.

    Returns:
        Tokens, special tokens included, of an encoder-decoder such as LED those that both sides take; `None` for a
        model that only knows distances between tokens, such as DeBERTa or XLNet, whose configuration has -1.
    """
    config = text_config_of(config)
    sides = ("max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings")
    limits = [getattr(config, name) for name in sides if getattr(config, name, None) is not None]
    positions: int | None = min(limits, default=None)
    if positions is None or positions < 0 or not getattr(config, "position_biased_input", True):
        return None
    return positions - 1 - int(config.pad_token_id or 0) if _positions_follow_padding(config) else positions


def _positions_follow_padding(config: PretrainedConfig) -> bool:
    """Whether positions are counted from the one after the padding token's id, as in RoBERTa.

    Of an architecture that is not in the table, transformers' code says so: all that do call a function of one name.
    """
    if (family := FAMILIES.get(config.model_type)) is not None:
        return family.positions_follow_padding
    file = Path(inspect.getfile(type(config)))
    code = file.with_name(file.name.replace("configuration_", "modeling_"))
    return code.is_file() and "create_position_ids_from_input_ids" in code.read_text(encoding="utf-8")


def load_classification_config(
    backbone: str,
    label_names: list[str],
    pad_token_id: int,
    base_dropout: float | None = None,
    problem_type: ProblemType = SINGLE_LABEL,
) -> PretrainedConfig:
    """Reads the architecture and gives it the task's labels.

    Args:
        backbone: Hub id, folder or `package://` name.
        label_names: Names of the classes, by index; of a regression the name of the number.
        pad_token_id: The tokenizer's padding token.
        base_dropout: Probability for every dropout of the pretrained model; `None` leaves what it came with.
        problem_type: transformers' word for the kind of labels; goes into `config.json`.

    Returns:
        The configuration for `AutoModelForSequenceClassification`.

    Raises:
        BackboneError: If it cannot be found, has no embedding for the padding token, or no token that its decoder
            starts with.
    """
    config = load_config(backbone)
    size = vocabulary_size(config)
    if size is not None and pad_token_id >= size:
        msg = (
            f"the tokenizer of {backbone!r} pads with token {pad_token_id}, but the model embeds only {size} tokens; "
            "save the tokenizer with a padding token that the model has."
        )
        raise BackboneError(msg)
    family = FAMILIES.get(config.model_type)
    if family and family.needs_decoder_start and getattr(config, "decoder_start_token_id", None) is None:
        msg = (
            f"the config.json of {backbone!r} has no decoder_start_token_id, without which its decoder cannot run; add "
            "that of the pretraining, for T5 the padding token's id, 0."
        )
        raise BackboneError(msg)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: index for index, name in enumerate(label_names)}
    config.problem_type = problem_type
    config.pad_token_id = pad_token_id
    set_base_dropout(config, base_dropout)
    return config


def set_base_dropout(config: PretrainedConfig, base_dropout: float | None) -> None:
    """Sets every dropout of the pretrained model, in place.

    Args:
        config: The architecture.
        base_dropout: The probability; `None` leaves what it came with.
    """
    if base_dropout is not None:
        for name in _dropout_names(config):
            setattr(config, name, base_dropout)


def _dropout_names(config: PretrainedConfig) -> list[str]:
    """Under which names this architecture keeps the dropout probabilities of its base."""
    return [
        name
        for name, value in vars(config).items()
        if ("dropout" in name or "pdrop" in name) and name not in NOT_OF_THE_BASE and isinstance(value, float | int)
    ]


def check_adapter_settings(
    config: PretrainedConfig,
    settings: LoraSettings,
    quantization: QuantizationSettings | None = None,
    auto_class: Any = AutoModelForSequenceClassification,
) -> None:
    """Finds a wrong module name before any weights load, on a model without storage.

    Args:
        config: From `load_classification_config` or `load_question_answering_config`.
        settings: The adapter's settings.
        quantization: The base's; `None` for none.
        auto_class: Which of transformers' `AutoModelFor...` has the task's head.

    Raises:
        BackboneError: If the architecture has no such head.
        ConfigurationError: If a target or a module to save or to skip does not exist in the architecture, or the base
            cannot be quantized.
    """
    model = build_without_storage(auto_class, config)
    in_full = modules_trained_in_full(model, settings, modules_beside_base(model))
    check_weight_tying(model, settings, in_full)
    targets = find_targets(model, settings, exclude=in_full)
    if quantization is not None:
        check_quantization(model, quantization, in_full, targets.parameters)


def build_without_storage(auto_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    """Builds a model on the meta device, to look at its modules before any weights load.

    Args:
        auto_class: One of transformers' `AutoModelFor...`.
        config: The architecture.

    Returns:
        The model.

    Raises:
        BackboneError: If the architecture has no such model.
    """
    source = str(config.name_or_path)
    with torch.device("meta"):
        model: PreTrainedModel = _load(
            source, lambda: auto_class.from_config(config, trust_remote_code=runs_remote_code(source))
        )
    if (count := sum(parameter.numel() for parameter in model.parameters())) > MOST_PARAMETERS:
        msg = (
            f"the config.json of {config.name_or_path!r} describes a model of {count:.0e} parameters, which "
            "no machine can store; fix its sizes."
        )
        raise BackboneError(msg)
    return model


def load_model(
    auto_class: Any,
    backbone: str,
    config: PretrainedConfig,
    quantization: Quantization | None = None,
    key_mapping: Mapping[str, str] | None = None,
    values: bool = True,
) -> LoadedBackbone:
    """Loads a pretrained model in float32; a head that is missing, or has another shape, is newly initialized.

    Args:
        auto_class: One of transformers' `AutoModelFor...`.
        backbone: Hub id, folder or `package://` name.
        config: The architecture, with the task's settings.
        quantization: How to quantize the base; what is not quantized is float32 all the same, as QLoRA has it.
        key_mapping: What to replace in the names of the weights, by regular expression.
        values: False leaves the model on the meta device, for `lora.sharding.shard` to bring the values; a GGUF file
            is read all the same.

    Returns:
        The model and what its checkpoint lacked.

    Raises:
        BackboneError: If the weights cannot be found or do not fit the architecture.
    """
    source = resolve_backbone(backbone)
    is_gguf = gguf_file_of(source) is not None
    settings = {
        "config": config,
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,
        "key_mapping": key_mapping,
        **_where(source),
    }

    def load(**more: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        loader: Callable[..., tuple[PreTrainedModel, dict[str, Any]]] = auto_class.from_pretrained
        return _load(backbone, lambda: loader(source, output_loading_info=True, **settings, **more))

    # What the weights lack must not be quantized, so before it loads them transformers only looks which there are; and
    # whoever waits for large weights shall not learn only then that they are incomplete.
    looks_first = (quantization is not None or not values or _takes_long(source)) and not is_gguf
    with _without_bar(source):
        model, info = load(**({"device_map": "meta"} if looks_first else {}))
    lacked = _check_complete(model, info, backbone, source)
    if looks_first and values and quantization is None:
        model = load()[0]
    if is_gguf:
        forget_quantization(model)
    if quantization is not None:
        bits = bitsandbytes_config(model, quantization, lacked)
        more = {"quantization_config": bits, "device_map": {"": quantization.device}}
        model = _load(backbone, lambda: _quantized(model, more)) if is_gguf else load(**more)[0]
        keep_biases_as_they_are(model)
        warn_of_unquantized_weights(model, lacked)
        # In config.json it would tell transformers that the weights of the backbone itself are quantized.
        del model.config.quantization_config
        give_back_free_memory()  # of the unquantized weights: 675 MiB for SmolLM2-135M in a GGUF file
    reset_frequencies_after_each_pass(model)
    return LoadedBackbone(model, lacked)


def load_quantized_model(
    auto_class: Any, backbone: str, config: PretrainedConfig, quantization: BitsAndBytesConfig
) -> LoadedBackbone:
    """Loads a pretrained model and quantizes it as an exported adapter's folder says.

    Args:
        auto_class: One of transformers' `AutoModelFor...`.
        backbone: Hub id, folder or `package://` name.
        config: The architecture, with the task's settings.
        quantization: From `quantization_config.json`.

    Returns:
        The model on the CPU, or on the GPU if there is one, and what its checkpoint lacked.

    Raises:
        BackboneError: If the weights cannot be found or do not fit the architecture.
    """
    renamed = renamed_weights(build_without_storage(auto_class, config))
    lacked = load_model(auto_class, backbone, config, key_mapping=renamed, values=False).lacked
    source = resolve_backbone(backbone)
    settings = {
        "config": config,
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,
        "quantization_config": quantization,
        "key_mapping": renamed,
        "device_map": {"": "cuda:0" if torch.cuda.is_available() else "cpu"},
        **_where(source),
    }
    loader: Any = auto_class.from_pretrained
    model: PreTrainedModel = _load(backbone, lambda: loader(source, **settings))
    if renamed is not None:
        forget_renamed_weights(model)
    keep_biases_as_they_are(model)
    del model.config.quantization_config
    reset_frequencies_after_each_pass(model)
    return LoadedBackbone(model, lacked)


def _takes_long(source: str) -> bool:
    """Whether there are more bytes to read than a look at the names costs."""
    return sum(file.stat().st_size for file in Path(source).glob("*.safetensors")) > LONG_TO_READ


def _check_complete(model: PreTrainedModel, info: Mapping[str, Any], backbone: str, source: str) -> list[str]:
    """The modules that the weights lack; an error if they lack or hold anything else."""

    def names_of_base() -> Collection[str]:
        return build_without_storage(AutoModel, model.config).state_dict().keys()

    lacked = check_complete(model, info, backbone, names_of_base)
    if (file := gguf_file_of(source)) is not None:
        check_gguf_layers(model, Path(source) / file, backbone)
    return lacked


def _without_bar(source: str) -> AbstractContextManager[Any]:
    """Hides the bar of a GGUF file's tensors, which transformers shows whatever it is told."""
    return nullcontext() if gguf_file_of(source) is None else redirect_stderr(io.StringIO())


def renamed_weights(model: PreTrainedModel) -> dict[str, str] | None:
    """What to replace in a checkpoint's names where a model with a head calls its base otherwise than checkpoints do.

    Llama's and Qwen's question answerers call `transformer` what is `model` in every checkpoint of theirs, and would
    stay random (transformers#30381).

    Args:
        model: Any, also without storage.

    Returns:
        For the `key_mapping` of `from_pretrained`; `None` for nothing.
    """
    here, elsewhere = model.base_model_prefix, build_without_storage(AutoModel, model.config).base_model_prefix
    return None if here == elsewhere else {rf"^{elsewhere}\.": f"{here}."}


def _quantized(model: PreTrainedModel, settings: Mapping[str, Any]) -> PreTrainedModel:
    """A model in memory again, quantized: transformers refuses to quantize a GGUF file while it reads it."""
    quantized: PreTrainedModel = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=torch.float32, **settings
    )
    quantized.generation_config = model.generation_config
    return quantized


def load_original_weights(model: PreTrainedModel, backbone: str, modules: Collection[str]) -> dict[str, Tensor]:
    """Loads what layers of a quantized model were before.

    Args:
        model: The quantized model; only its class matters.
        backbone: Hub id, folder or `package://` name of the model that it was made from.
        modules: Dotted names of the layers.

    Returns:
        (out_features, in_features) by name, in the dtype in which they are stored, on the CPU.

    Raises:
        BackboneError: If it cannot be found, or has no such layer.
    """
    source = resolve_backbone(backbone)
    settings = {
        "dtype": "auto",
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
        "key_mapping": renamed_weights(model),
        **_where(source),
    }
    loader: Any = type(model).from_pretrained
    # A trainer has made the GPU the default device, which the model was quantized to fit on.
    with _without_bar(source), torch.device("cpu"):
        original, info = _load(backbone, lambda: loader(source, **settings))
    found = {name: module for name, module in original.named_modules() if f"{name}.weight" not in info["missing_keys"]}
    weights = {}
    for name in modules:
        if (module := found.get(name)) is None:
            msg = f"the backbone {backbone!r} has no layer {name}; give the model that was quantized."
            raise BackboneError(msg)
        weight = cast("Tensor", module.weight).detach()
        weights[name] = weight.T if isinstance(module, Conv1D | nn.Embedding) else weight
    return weights


def _load(backbone: str, load: Callable[[], Loaded]) -> Loaded:
    """Runs one of transformers' loaders quietly and explains its failures.

    transformers prints a bar and a report of new weights at each load; what is new, trains, and is in the summary.
    """
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return load()
    except LoraLightningError:
        raise
    except Exception as error:  # a damaged or hostile file makes transformers raise anything
        raise BackboneError(_reason(backbone, error)) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def _where(source: str) -> dict[str, Any]:
    """What transformers' loaders need beside the source."""
    gguf_file = gguf_file_of(source)
    if gguf_file is None:
        return {"local_files_only": not hub_is_reachable(), "trust_remote_code": runs_remote_code(source)}
    if importlib.util.find_spec("gguf") is None:
        msg = f"{source} holds a GGUF file, and the Python package that reads it is missing; run `pip install gguf`."
        raise BackboneError(msg)
    return {"local_files_only": True, "gguf_file": gguf_file}


def _reason(backbone: str, error: Exception) -> str:
    """The sentence for what one of transformers' loaders raised."""
    text = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(str(error).split()))
    if isinstance(error, OSError) and not Path(resolve_backbone(backbone)).is_dir():
        return not_found(backbone)
    why = f"{text[:200]} ({type(error).__name__})"
    if isinstance(error, UnpicklingError):
        why = "its pickled weights are damaged or hold more than tensors, which is never executed; give safetensors"
    elif "custom code" in text:
        why = (
            "it needs Python code of its own, which is not run unless you read it and set --trust_remote_code true; or "
            "choose an architecture that transformers has"
        )
    elif "can't allocate memory" in text:
        why = f"its config.json asks for more memory than there is: {text.rpartition('you tried to ')[2][:60]}"
    return f"the backbone {backbone!r} could not be loaded: {why}"
