"""Puts the settings of the adapter in `model.adapter` into the options, so that a run's config.yaml is complete."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import yaml

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.tasks.continued_adapter import ContinuedAdapter

# Valid values that are not the defaults: parsed under the user's options, they show which of these were given.
OTHER_VALUES = {
    "r": 9,
    "lora_alpha": 17.0,
    "lora_dropout": 0.06,
    "target_modules": "attention",
    "bias": "all",
    "use_rslora": True,
    "use_dora": True,
    "ensure_weight_tying": True,
    "init_lora_weights": "gaussian",
}
Parse = Callable[[Sequence[str]], Any]


def adopt_adapter_settings(options: Any, words: Sequence[str], parse: Parse) -> None:
    """Replaces `model.lora` by the settings of the adapter in `model.adapter`.

    Args:
        options: Of `fit`; changed in place.
        words: The command line that they were parsed from.
        parse: Parses a command line.

    Raises:
        CheckpointError: If there is no such adapter, or its files are damaged.
        ConfigurationError: If the task has no such option, or an option contradicts the adapter.
    """
    own = options.model.init_args
    if own.lora is None:
        msg = "model.adapter continues an adapter, but model.lora is null; leave model.lora out."
        raise ConfigurationError(msg)
    module, _, name = options.model.class_path.rpartition(".")
    auto_class = getattr(importlib.import_module(module), name).auto_class
    adapter = ContinuedAdapter.find(own.adapter, own.backbone, auto_class)
    given = given_settings(options, words, parse)
    for name, value in asdict(adapter.settings(given)).items():
        own.lora[name] = value


def given_settings(options: Any, words: Sequence[str], parse: Parse) -> dict[str, Any]:
    """The options of `model.lora` that the user gave, whether or not they have their default values.

    Args:
        options: Parsed from `words`.
        words: The command line.
        parse: Parses a command line.

    Returns:
        Values by name.
    """
    model = {"class_path": options.model.class_path, "init_args": {"lora": OTHER_VALUES}}
    shown = parse([f"--config={yaml.safe_dump({'model': model})}", *words]).model.init_args.lora
    defaults = {field.name: field.default for field in fields(LoraSettings)}
    found: Mapping[str, Any] = options.model.init_args.lora.as_dict()
    return {
        name: value
        for name, value in found.items()
        if value != defaults[name] or (name in OTHER_VALUES and shown[name] == value)
    }
