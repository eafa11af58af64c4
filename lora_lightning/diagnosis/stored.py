"""Dataclasses of numbers as JSON, and back."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lora_lightning.statistics.analysis import as_json

__all__ = ["as_json", "from_json"]


def from_json(kind: Any, value: Any) -> Any:
    """Makes an object from what `as_json` made of it.

    Args:
        kind: A dataclass, or the annotation of a field: numbers, texts, enumerations, `tuple[X, ...]`, `Mapping[K, V]`,
            and unions with `None`.
        value: Dictionaries, lists, strings and numbers; null stands for a number that was not finite.

    Returns:
        The object; numbers that were infinite are NaN.

    Raises:
        KeyError: If a field is missing that has no default; those with one may be newer than the file.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        known = [each for each in arguments if each is not type(None)]
        return None if value is None else from_json(known[0], value)
    if kind is float:
        return math.nan if value is None else float(value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        named = [each.name for each in fields(kind) if each.name in value or each.default is MISSING]
        return kind(**{name: from_json(hints[name], value[name]) for name in named})
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(from_json(each, part) for each, part in zip(kinds, value, strict=True))
    if origin in {dict, Mapping}:
        return {from_json(arguments[0], key): from_json(arguments[1], each) for key, each in value.items()}
    return kind(value) if kind is int or (isinstance(kind, type) and issubclass(kind, Enum)) else value
