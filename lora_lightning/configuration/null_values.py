"""Finds `null` where an option needs a value: the parser takes it for every option of a class, whatever its type."""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from lightning import Trainer

from lora_lightning.errors import ConfigurationError


def check_nulls(options: Mapping[str, Any], groups: Mapping[str, Callable[..., Any]]) -> None:
    """Refuses `null` for options whose types do not allow it.

    Args:
        options: Of a command, as plain values: `model`, `data` and the rest.
        groups: What is made from the options of a group, by its name, beside the trainer.

    Raises:
        ConfigurationError: Names the option and its default.
    """
    for name in ("model", "data"):
        _check_class(options.get(name), name)
    trainer = options.get("trainer") or {}
    for name, made_by in {"trainer": Trainer, **groups}.items():
        _check_call(made_by, options.get(name) or {}, name)
    callbacks = trainer.get("callbacks")
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        _check_class(callback, "trainer.callbacks")


def _check_class(entry: Any, where: str) -> None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("init_args"), Mapping):
        return
    module, _, name = str(entry["class_path"]).rpartition(".")
    made_by = getattr(importlib.import_module(module), name, None)
    if made_by is not None:  # a class inside another is the parser's to find
        _check_call(made_by, entry["init_args"], where)


def _check_call(made_by: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Compares options with the types of a class's arguments, and those of settings within them with their fields'."""
    try:
        kinds = typing.get_type_hints(made_by if dataclasses.is_dataclass(made_by) else made_by.__init__)
    except (NameError, TypeError):  # of a class elsewhere, whose annotations are for a type checker alone
        return
    parameters = inspect.signature(made_by).parameters
    for name, value in options.items():
        kind, parameter = kinds.get(name, Any), parameters.get(name)
        choices = typing.get_args(kind) or (kind,)
        if value is None and parameter is not None and parameter.default is not None and not _allows_none(choices):
            default = "" if parameter.default is inspect.Parameter.empty else "; leave it out for the default"
            msg = f"{where}.{name} is null, but it needs a value{default}."
            raise ConfigurationError(msg)
        for settings in choices:
            if dataclasses.is_dataclass(settings) and isinstance(value, Mapping):
                _check_call(typing.cast("Callable[..., Any]", settings), value, f"{where}.{name}")


def _allows_none(choices: tuple[Any, ...]) -> bool:
    return NoneType in choices or Any in choices
