"""What a task was made with, as plain values in its checkpoints, and where two tasks differ in it."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from lora_lightning.backbones.source import backbone_identity
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.runs.settings import differences, flatten
from lora_lightning.tasks.optimization import OptimizationSettings

# Of a task, by their names in it.
SETTINGS = {"lora": LoraSettings, "quantization": QuantizationSettings, "optimization": OptimizationSettings}
# Hyperparameters that decide which weights a checkpoint holds; the others may differ when it is evaluated.
# What 4-bit weights are multiplied in follows the device, so a checkpoint does not insist on it.
STRUCTURAL = (
    "backbone.",
    "lora.",
    "freeze_backbone.",
    "quantization.bits.",
    "quantization.type.",
    "quantization.double_quantization.",
    "quantization.skip_modules.",
    "label_space.names.",
    "label_space.problem_type.",
    "problem.",
)

Settings = TypeVar("Settings")


def as_settings(settings_class: type[Settings], value: Any) -> Settings | None:
    """Makes a settings object again from the plain values that a checkpoint holds.

    Args:
        settings_class: A dataclass.
        value: An object of it, its fields by name, or `None`.

    Returns:
        The object, or `None`.
    """
    if isinstance(value, Mapping):
        return settings_class(**value)
    return cast("Settings | None", value)


def hyperparameter_conflicts(saved: Mapping[str, Any], asked: Mapping[str, Any], structural_only: bool) -> list[str]:
    """Where a checkpoint's hyperparameters and the asked ones differ.

    Args:
        saved: Hyperparameters in the checkpoint.
        asked: Hyperparameters of the model at hand; labels that are not known yet contradict nothing.
        structural_only: Compare only what decides which weights a checkpoint holds, as evaluation needs.

    Returns:
        One text a difference, with both values; empty where they agree.
    """
    left, right = _comparable(asked, structural_only), _comparable(saved, structural_only)
    if asked.get("label_space") is None:
        right = {name: value for name, value in right.items() if not name.startswith("label_space")}
    return differences(left, right, "in the checkpoint")


def _comparable(hyperparameters: Mapping[str, Any], structural_only: bool) -> dict[str, Any]:
    flat = {name: value for name, value in flatten(hyperparameters).items() if not name.startswith("_")}
    flat.setdefault("freeze_backbone", False)  # tasks without a head have no such option
    for prefix, settings_class in SETTINGS.items():
        if any(name.startswith(f"{prefix}.") for name in flat):  # older checkpoints lack what has been added since
            flat = flatten(settings_class(), prefix) | flat
    flat["backbone"] = backbone_identity(str(flat.get("backbone")))
    if structural_only:
        flat = {name: value for name, value in flat.items() if f"{name}.".startswith(STRUCTURAL)}
    return {name: value for name, value in flat.items() if value is not None}
