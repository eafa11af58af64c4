"""Loads pretrained models with a span head for `tasks.question_answering`, after checking their settings."""

from transformers import AutoModelForQuestionAnswering, PretrainedConfig

from lora_lightning.backbones.loading import (
    LoadedBackbone,
    build_without_storage,
    check_adapter_settings,
    load_classification_config,
    load_model,
    renamed_weights,
)
from lora_lightning.backbones.quantization import Quantization
from lora_lightning.backbones.unused_options import check_idle_options
from lora_lightning.compat.transformers import forget_renamed_weights
from lora_lightning.lora.config import LoraSettings, QuantizationSettings


def load_question_answering_config(
    backbone: str, pad_token_id: int, base_dropout: float | None = None
) -> PretrainedConfig:
    """Reads the architecture and gives it a head with two outputs a token: does an answer start, or end, here?

    Args:
        backbone: Hub id, folder or `package://` name.
        pad_token_id: The tokenizer's padding token.
        base_dropout: Probability for every dropout of the pretrained model; `None` leaves what it came with.

    Returns:
        The configuration for `AutoModelForQuestionAnswering`.

    Raises:
        BackboneError: If it cannot be found, or has no embedding for the padding token.
    """
    # Also where the backbone was fine-tuned on three classes: the number of labels is that of outputs a token.
    return load_classification_config(backbone, ["start", "end"], pad_token_id, base_dropout)


def check_question_answering_settings(
    config: PretrainedConfig, settings: LoraSettings, quantization: QuantizationSettings | None = None
) -> None:
    """Finds a wrong module name before any weights load.

    Args:
        config: From `load_question_answering_config`.
        settings: The adapter's settings.
        quantization: The base's; `None` for none.

    Raises:
        BackboneError: If the architecture has no head for question answering.
        ConfigurationError: If a target or a module to save or to skip does not exist in the architecture, or the base
            cannot be quantized, or an option would do nothing.
    """
    check_adapter_settings(config, settings, quantization, AutoModelForQuestionAnswering)
    check_idle_options(config, settings, quantization, AutoModelForQuestionAnswering)


def load_question_answerer(
    backbone: str, config: PretrainedConfig, quantization: Quantization | None = None, values: bool = True
) -> LoadedBackbone:
    """Loads `AutoModelForQuestionAnswering`; a head that the weights lack is newly initialized.

    Args:
        backbone: Hub id, folder or `package://` name.
        config: From `load_question_answering_config`.
        quantization: How to quantize the base; `None` loads it in float32.
        values: As in `load_model`.

    Returns:
        The model and what its checkpoint lacked.

    Raises:
        BackboneError: If the weights cannot be found or do not fit the architecture.
    """
    renamed = renamed_weights(build_without_storage(AutoModelForQuestionAnswering, config))
    loaded = load_model(AutoModelForQuestionAnswering, backbone, config, quantization, renamed, values)
    if renamed is not None:  # or save_pretrained would bring the old names back, and nothing could load them
        forget_renamed_weights(loaded.model)
    return loaded
