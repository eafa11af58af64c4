"""Refuses settings that cannot be combined; each variant says which, and why.

Each pair was tried with PEFT 0.21.2: it fails, ignores one of the two silently, or computes something else.
"""

from dataclasses import fields
from typing import Any

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.variants import chosen_variants


def check_combinations(lora: Any, optimization: Any = None) -> None:
    """Refuses variants, and other options, that cannot be combined.

    Args:
        lora: `LoraSettings`, or `None`.
        optimization: `OptimizationSettings`, or `None` while only the adapter's settings are known.

    Raises:
        ConfigurationError: If two exclude each other, which names both and says why; or if a variant of the optimizer
            has no adapter to work on.
    """
    for variant in chosen_variants(lora, optimization):
        if lora is None:
            msg = f"{variant.option} is a variant of LoRA, but model.lora is null; leave it out."
            raise ConfigurationError(msg)
        variant.check_settings(lora)
        for option, why in variant.excludes.items():
            if _is_set(option, {"model.lora": lora, "model.optimization": optimization}):
                msg = f"{variant.title} and {option} cannot be combined: {why}."
                raise ConfigurationError(msg)


def _is_set(option: str, sections: dict[str, Any]) -> bool:
    """Whether an option differs from its default."""
    section, _, name = option.rpartition(".")
    settings = sections[section]
    if settings is None:
        return False
    default = next(field.default for field in fields(settings) if field.name == name)
    return bool(getattr(settings, name) != default)


def check_lora_and_quantization(lora: Any, quantization: Any) -> None:
    """Refuses settings of adapter and base that cannot be combined.

    Args:
        lora: `LoraSettings`, or `None`.
        quantization: `QuantizationSettings` of the base, or `None`.

    Raises:
        ConfigurationError: If quantized weights would have to train, or a variant cannot work on such a base.
    """
    if lora is None and quantization is not None:
        msg = (
            "model.quantization is set, but model.lora is null, and quantized weights cannot train; give model.lora "
            "its settings, or write `quantization: null`."
        )
        raise ConfigurationError(msg)
    for variant in chosen_variants(lora):
        variant.check_base(None if quantization is None else quantization.bits)


def check_sharding(lora: Any, optimization: Any) -> None:
    """Refuses a variant that needs full matrices, before the base is loaded and sharded.

    Args:
        lora: `LoraSettings`, or `None`.
        optimization: `OptimizationSettings`.

    Raises:
        ConfigurationError: If the settings ask for one.
    """
    for variant in chosen_variants(lora, optimization):
        variant.check_sharding()
