"""Options of an adapter to which an architecture, or what is quantized of it, leaves nothing: refused, not ignored."""

from collections.abc import Collection
from typing import Any

from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lora_lightning.backbones.head_modules import modules_beside_base
from lora_lightning.backbones.loading import build_without_storage
from lora_lightning.backbones.quantization import modules_left
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.injection import modules_trained_in_full
from lora_lightning.lora.target_modules import linear_layers
from lora_lightning.lora.targets import find_targets
from lora_lightning.lora.variants import chosen_variants
from lora_lightning.lora.variants.variant import Variant


def check_idle_options(
    config: PretrainedConfig,
    settings: LoraSettings,
    quantization: QuantizationSettings | None = None,
    auto_class: Any = AutoModelForSequenceClassification,
) -> None:
    """Finds options that would do nothing before any weights load, on a model without storage.

    Args:
        config: The architecture.
        settings: The adapter's settings, already checked against it.
        quantization: The base's; `None` for none.
        auto_class: Which of transformers' `AutoModelFor...` has the task's head.

    Raises:
        ConfigurationError: If biases are to train and there are none, or a variant has no quantized layer to work on.
    """
    needing = [variant for variant in chosen_variants(settings) if variant.needs_quantized_layers]
    if settings.bias == "none" and not needing:
        return  # a large model takes a while to build, even without storage
    model = build_without_storage(auto_class, config)
    in_full = modules_trained_in_full(model, settings, modules_beside_base(model))
    targets = find_targets(model, settings, exclude=in_full)
    names = [*targets.modules, *(name.rpartition(".")[0] for name in targets.parameters)]
    _check_biases(model, settings, names, in_full)
    if quantization is not None and needing:
        _check_quantized_targets(model, quantization, needing[0], targets.modules, in_full)


def _check_biases(
    model: PreTrainedModel, settings: LoraSettings, targets: Collection[str], in_full: Collection[str]
) -> None:
    # As PEFT finds them; those of the head, and of what else trains in full, train in any case.
    biases = [name.rpartition(".")[0] for name, _ in model.named_parameters() if name.endswith(".bias")]
    others = [name for name in biases if not any(f"{name}.".startswith(f"{module}.") for module in in_full)]
    if settings.bias == "all" and not others:
        msg = (
            f"model.lora.bias is all, but no module of {model.config.model_type} has a bias, beside what trains in "
            "full; set it to none."
        )
        raise ConfigurationError(msg)
    if settings.bias == "lora_only" and not set(targets).intersection(others):
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in targets}))
        msg = (
            f"model.lora.bias is lora_only, but no adapted layer has a bias ({kinds} of {model.config.model_type}); "
            f"set it to {'all or none' if others else 'none'}."
        )
        raise ConfigurationError(msg)


def _check_quantized_targets(
    model: PreTrainedModel,
    quantization: QuantizationSettings,
    variant: Variant,
    targets: Collection[str],
    in_full: Collection[str],
) -> None:
    if not set(targets).intersection(linear_layers(model, modules_left(model, quantization, in_full))):
        msg = (
            f"{variant.option} is {variant.value}, but model.quantization.skip_modules is "
            f"{quantization.skip_modules}, which leaves no adapted layer to quantize; shorten skip_modules, or leave "
            f"{variant.option.rpartition('.')[2]} out."
        )
        raise ConfigurationError(msg)
