"""A task's hyperparameters as plain values in its checkpoints, and the differences between two tasks."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from lora_lightning.backbones.source import backbone_identity
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.runs.settings import flatten, list_differences
from lora_lightning.tasks.optimization import OptimizationSettings

# A task's settings objects by the names of its attributes.
SETTINGS = {"lora": LoraSettings, "quantization": QuantizationSettings, "optimization": OptimizationSettings}
# Hyperparameters that decide which weights a checkpoint holds; all others may differ when it is evaluated. The dtype in
# which 4-bit weights are multiplied depends on the device, so it may differ too.
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
    "decision_threshold.",
    "problem.",
)

Settings = TypeVar("Settings")


def as_settings(settings_class: type[Settings], value: Any) -> Settings | None:
    """Makes a settings object from the plain values that a checkpoint holds.

    Args:
        settings_class: A dataclass.
        value: An object of the dataclass, its fields by name, or `None`.

    Returns:
        The object, or `None`.
    """
    if isinstance(value, Mapping):
        return settings_class(**value)
    return cast("Settings | None", value)


def with_later_options(saved: Mapping[str, Any], asked: Mapping[str, Any], task_class: type[Any]) -> dict[str, Any]:
    """Fills in the options that a task did not have yet when an older release wrote a checkpoint.

    Args:
        saved: Hyperparameters in the checkpoint.
        asked: Hyperparameters of the task.
        task_class: The class of the task.

    Returns:
        What was saved, with the default of each option of `asked` that it lacks: a default means what was done before
        there was the option. An option without a default stays out.
    """
    defaults: dict[str, Any] = {}
    for each in reversed(task_class.__mro__):  # a class may pass **kwargs on
        for name, option in inspect.signature(each).parameters.items():
            if option.default is not option.empty:
                defaults[name] = option.default
    return {name: defaults[name] for name in asked if name in defaults} | dict(saved)


def hyperparameter_conflicts(
    saved: Mapping[str, Any], asked: Mapping[str, Any], structural_only: bool, compare_base: bool = True
) -> list[str]:
    """The differences between a checkpoint's hyperparameters and those of a task.

    Args:
        saved: Hyperparameters in the checkpoint.
        asked: Hyperparameters of the task; labels that are not known yet conflict with nothing.
        structural_only: Compare only the hyperparameters that decide which weights a checkpoint holds, as evaluation
            needs it.
        compare_base: Whether the name of the backbone counts; it does not if its content was compared.

    Returns:
        A text for each difference, with both values; empty if there is none.
    """
    left, right = _comparable(asked, structural_only), _comparable(saved, structural_only)
    if asked.get("label_space") is None:
        right = {name: value for name, value in right.items() if not name.startswith("label_space")}
    if not compare_base:
        left, right = ({**values, "backbone": None} for values in (left, right))
    return list_differences(left, right, "in the checkpoint")


def _comparable(hyperparameters: Mapping[str, Any], structural_only: bool) -> dict[str, Any]:
    flat = {name: value for name, value in flatten(hyperparameters).items() if not name.startswith("_")}
    flat.setdefault("freeze_backbone", False)  # tasks without a head have no such option
    for prefix, settings_class in SETTINGS.items():
        if any(name.startswith(f"{prefix}.") for name in flat):  # older checkpoints lack options that were added later
            flat = flatten(settings_class(), prefix) | flat
    flat["backbone"] = backbone_identity(str(flat.get("backbone")))
    if structural_only:
        flat = {name: value for name, value in flat.items() if f"{name}.".startswith(STRUCTURAL)}
    return {name: value for name, value in flat.items() if value is not None}
