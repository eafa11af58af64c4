"""Loads pretrained causal language models for the task of the same name, after checking their settings."""

from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lora_lightning.backbones.loading import (
    LoadedBackbone,
    build_without_storage,
    load_config,
    load_model,
    set_base_dropout,
)
from lora_lightning.backbones.quantization import Quantization, check_quantization
from lora_lightning.backbones.unused_options import check_idle_options
from lora_lightning.compat.transformers import is_masked_language_model
from lora_lightning.errors import BackboneError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.injection import modules_trained_in_full
from lora_lightning.lora.targets import find_targets
from lora_lightning.lora.weight_tying import check_weight_tying


def load_causal_lm_config(backbone: str, base_dropout: float | None = None) -> PretrainedConfig:
    """Reads the architecture of a causal language model.

    Args:
        backbone: Hub id, folder or `package://` name.
        base_dropout: Probability for every dropout of the pretrained model; `None` leaves what it came with.

    Returns:
        The configuration for `AutoModelForCausalLM`.

    Raises:
        BackboneError: If it cannot be found, or its tokens see what comes after them, as an encoder's do.
    """
    config = load_config(backbone)
    # transformers would load BERT as a "causal" model too, with attention in both directions and a loss near 0.
    if is_masked_language_model(config) or config.is_encoder_decoder:
        kind = "encoder-decoder" if config.is_encoder_decoder else "encoder"
        msg = (
            f"the backbone {backbone!r} is an {kind} ({config.model_type}), which cannot predict the next token; "
            "give a causal language model such as gpt2, facebook/opt-125m or HuggingFaceTB/SmolLM2-135M."
        )
        raise BackboneError(msg)
    set_base_dropout(config, base_dropout)
    return config


def output_head_name(model: PreTrainedModel) -> str:
    """The dotted name of the layer that turns hidden states into logits, for example `lm_head`."""
    head = model.get_output_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is head)


def check_causal_lm_settings(
    config: PretrainedConfig, settings: LoraSettings, quantization: QuantizationSettings | None = None
) -> None:
    """Finds a wrong module name before any weights load, on a model without storage.

    Args:
        config: From `load_causal_lm_config`.
        settings: The adapter's settings.
        quantization: The base's; `None` for none.

    Raises:
        BackboneError: If the architecture is no causal language model.
        ConfigurationError: If a target or a module to save or to skip does not exist, a module cannot train by itself,
            the base cannot be quantized, or an option would do nothing.
    """
    model = build_without_storage(AutoModelForCausalLM, config)
    in_full = modules_trained_in_full(model, settings, [])
    check_weight_tying(model, settings, in_full)
    targets = find_targets(model, settings, exclude=[*in_full, output_head_name(model)])
    if quantization is not None:
        check_quantization(model, quantization, in_full, targets.parameters)
    check_idle_options(config, settings, quantization, AutoModelForCausalLM)


def load_causal_lm(
    backbone: str, config: PretrainedConfig, quantization: Quantization | None = None, values: bool = True
) -> PreTrainedModel:
    """Loads `AutoModelForCausalLM` in float32.

    Args:
        backbone: Hub id, folder or `package://` name.
        config: From `load_causal_lm_config`.
        quantization: How to quantize the base; `None` loads it in float32.
        values: As in `load_model`.

    Returns:
        The model, on the CPU unless it was quantized elsewhere.

    Raises:
        BackboneError: If the weights cannot be found, do not fit the architecture, or lack a part of it.
    """
    loaded: LoadedBackbone = load_model(AutoModelForCausalLM, backbone, config, quantization, values=values)
    if loaded.lacked:
        msg = (
            f"the weights of {backbone!r} lack {', '.join(loaded.lacked)}, so it is no language model yet; give a "
            "checkpoint with its pretrained language-model head."
        )
        raise BackboneError(msg)
    return loaded.model
