"""Loads a bare PEFT adapter on its base, and refuses one whose weights do not all have their place there."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
import transformers
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.backbones import (
    LoadedBackbone,
    load_classification_config,
    load_question_answerer,
    load_question_answering_config,
    load_sequence_classifier,
)
from lora_lightning.backbones.adapter_config import AdapterConfig
from lora_lightning.backbones.causal_language_modeling import load_causal_lm_config
from lora_lightning.backbones.export import QUANTIZATION
from lora_lightning.backbones.loading import load_model, load_quantized_model
from lora_lightning.backbones.model_card import CLASSIFIER, QUESTION_ANSWERER
from lora_lightning.errors import CheckpointError, ConfigurationError, VerificationError
from lora_lightning.lora.adapter_state import is_saved_twice
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.initial_factors import derive_initial_factors
from lora_lightning.lora.parameter_names import (
    ADAPTER,
    is_trained_copy,
    name_without_copies,
    name_without_wrappers,
    pretrained_name,
)
from lora_lightning.lora.quantized import keep_4bit_weights_in_order
from lora_lightning.metrics import LabelSpace


def load_adapter(
    config: AdapterConfig,
    weights: Mapping[str, Tensor],
    labels: LabelSpace | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[PeftModel, tuple[str, ...]]:
    """Loads the base and the adapter on it.

    Args:
        config: Of the adapter.
        weights: Of the adapter's file, by PEFT's names.
        labels: Of a classifier; `None` for other models, and for a classifier without any.
        tokenizer: Its padding token goes into the configuration.

    Returns:
        The adapter model in evaluation mode, and notes for the user.

    Raises:
        BackboneError: If the base cannot be loaded.
        ConfigurationError: If the weights of the base are saved quantized.
        CheckpointError: If the adapter does not fit it, if it lacks weights, or if it has more than the model.
        VerificationError: If the head of a classifier or question answerer is missing.
    """
    loaded = _load_base(config, labels, tokenizer)
    _check_head(config, loaded.lacked, loaded.model, weights)
    _resize_vocabulary(loaded.model, weights)
    loaded.model.requires_grad_(requires_grad=False)
    before = _weights_to_keep(config, loaded, weights)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            network = PeftModel.from_pretrained(loaded.model, str(config.folder), torch_device="cpu")
        loaded_again: Any = set_peft_model_state_dict(network, dict(weights))  # which PEFT does not return above
    except Exception as error:  # PEFT raises many kinds for an adapter that does not fit
        msg = f"{config.folder} does not fit its base model {config.base}: {' '.join(str(error).split())[:250]}"
        raise CheckpointError(msg) from error
    lost = [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]
    _check_same_weights(
        config, lost, [name for name in loaded_again.unexpected_keys if not is_saved_twice(name, weights)]
    )
    if config.changes_base:
        for name, layer in adapted_layers(network).items():
            derive_initial_factors(layer, before[f"{name}.weight"])
    keep_4bit_weights_in_order(network)
    network.eval()
    return network, _replaced_weights_note(network, before, weights)


def _load_base(config: AdapterConfig, labels: LabelSpace | None, tokenizer: PreTrainedTokenizerBase) -> LoadedBackbone:
    pad = cast("int", tokenizer.pad_token_id)
    base_config: PretrainedConfig
    if config.auto_class == CLASSIFIER:
        if labels is None:
            msg = (
                f"{config.folder} has no head and no labels, so its model would have a random head; name the "
                "head in modules_to_save and train again."
            )
            raise VerificationError(msg)
        base_config = load_classification_config(config.base, labels.names, pad, None, labels.problem_type)
    elif config.auto_class == QUESTION_ANSWERER:
        base_config = load_question_answering_config(config.base, pad)
    else:
        base_config = load_causal_lm_config(config.base)
    _check_floating_base(config, base_config)
    if (settings := config.quantization()) is not None:
        return load_quantized_model(getattr(transformers, config.auto_class), config.base, base_config, settings)
    if config.auto_class == CLASSIFIER:
        return load_sequence_classifier(config.base, base_config)
    if config.auto_class == QUESTION_ANSWERER:
        return load_question_answerer(config.base, base_config)
    return load_model(transformers.AutoModelForCausalLM, config.base, base_config)


def _check_floating_base(config: AdapterConfig, base_config: PretrainedConfig) -> None:
    saved = getattr(base_config, "quantization_config", None)
    if saved is None:
        return
    settings = saved if isinstance(saved, Mapping) else vars(saved)
    method = settings.get("quant_method", "an unknown method")
    msg = (
        f"the weights of the base model {config.base} are saved quantized ({getattr(method, 'value', method)}), and "
        "floating weights are needed; set base_model_name_or_path to the model before quantization, and save how to "
        f"quantize it with bitsandbytes as {QUANTIZATION} in {config.folder}."
    )
    raise ConfigurationError(msg)


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
                    "too, so its model would have a random head; name it in modules_to_save and train again."
                )
                raise VerificationError(msg)


def _resize_vocabulary(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Gives the base as many tokens as the embeddings in the adapter have, such as those of a chat template."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    saved = next((tensor for key, tensor in weights.items() if name_without_wrappers(key) == f"{name}.weight"), None)
    if saved is not None and len(saved) != len(cast("Tensor", embeddings.weight)):
        model.resize_token_embeddings(len(saved), mean_resizing=False)


def _weights_to_keep(config: AdapterConfig, loaded: LoadedBackbone, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the base weights that PEFT may change: those in the adapter's file, and for PiSSA and OLoRA all."""
    saved = {name_without_wrappers(name) for name in weights}
    new = tuple(f"{module}." for module in loaded.lacked)
    return {
        name: parameter.detach().clone()
        for name, parameter in loaded.model.named_parameters()
        if config.changes_base or (name in saved and not name.startswith(new))
    }


def _replaced_weights_note(
    network: PeftModel, before: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Names the base weights in the adapter's file that its configuration does not train, such as new embeddings."""
    trained = {
        name_without_copies(pretrained_name(name)) for name, _ in network.named_parameters() if is_trained_copy(name)
    }
    has_biases = getattr(network.peft_config[ADAPTER], "bias", "none") != "none"
    replaced = [
        name
        for name, tensor in ((name_without_wrappers(key), tensor) for key, tensor in weights.items())
        if name in before
        and name not in trained
        and not (has_biases and name.endswith(".bias"))
        and not torch.equal(before[name].cpu(), tensor.to(before[name].dtype))
    ]
    if not replaced:
        return ()
    names = ", ".join(replaced[:3]) + (", ..." if len(replaced) > 3 else "")  # noqa: PLR2004  # named ones
    return (f"the adapter's file replaces {len(replaced)} weights of the base model ({names}).",)


def _check_same_weights(config: AdapterConfig, lost: Sequence[str], unexpected: Sequence[str]) -> None:
    """PEFT only warns of layers without weights, and drops weights without a layer silently."""
    if lost:
        msg = (
            f"{config.folder} lacks weights of layers that its base model {config.base} has: "
            f"{' '.join(lost[0].partition('keys')[2].split())[:200]}; the adapter is incomplete or for another base."
        )
        raise CheckpointError(msg)
    if unexpected:
        names = ", ".join(pretrained_name(name) for name in unexpected[:3])
        msg = (
            f"{config.folder} holds {len(unexpected)} weights that have no place in its base model {config.base} with "
            f"its adapter_config.json, such as {names}; PEFT would drop them, and the model would not be what was "
            "trained. Use the base and the adapter_config.json that it was trained with."
        )
        raise CheckpointError(msg)
