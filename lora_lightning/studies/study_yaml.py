"""Reads YAML as the options of `fit` are read: `1e-3` is a number, and `2024-01-01` a text."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lora_lightning.configuration.yaml_files import DEEPEST
from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.specification import label_of

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
FLOAT, TIMESTAMP = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads `1e-3` as a number unless it is quoted, and dates as texts, which JSON can hold."""


_Loader.add_constructor(TIMESTAMP, yaml.SafeLoader.construct_yaml_str)
_Loader.add_implicit_resolver(FLOAT, EXPONENT, [*"-+.0123456789"])


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Args:
        path: The file, which is valid YAML.

    Returns:
        Its content.
    """
    return parse_yaml(path.read_text(encoding="utf-8-sig"))


def parse_yaml(text: str) -> Any:
    """Reads a YAML text.

    Args:
        text: The text.

    Returns:
        Its content.

    Raises:
        yaml.YAMLError: If it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # derived from the safe one


def typed_value(text: str) -> Any:
    """Reads a value as it was typed on a command line. `fit` reads a text by the type of its option.

    Args:
        text: Such as `0.2`, `[query, value]` or `Task # 3`.

    Returns:
        A number, list and so on only if YAML writes it as it was typed, so that nothing is lost; otherwise the text.
    """
    found = _plain_content(text)
    return found if label_of(found) == text else text


def read_alike(one: Any, other: Any) -> bool:
    """Whether `fit` cannot tell two values of an option apart, such as 4 and the text "4".

    Args:
        one: A value.
        other: Another one.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):  # options by name
        return one.keys() == other.keys() and all(read_alike(one[name], other[name]) for name in one)
    if isinstance(one, str) == isinstance(other, str):
        return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)  # for Python, True is 1
    text, value = (one, other) if isinstance(one, str) else (other, one)
    return text == label_of(value) or bool(as_number(text) == value)


def _plain_content(text: str) -> Any:
    """What a text is in YAML; the text itself if it is none, or nothing that JSON can hold."""
    try:
        found = parse_yaml(text)
        json.dumps(found)  # not of tags such as !!set, or of an alias of itself
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        return text
    return found


def as_number(value: Any) -> Any:
    """Returns the number that a text such as `1e-3` is, and any other value as it is.

    Args:
        value: The value.
    """
    return float(value) if isinstance(value, str) and EXPONENT.match(value) else value


def plain_values(value: Any, place: str, depth: int = 0) -> Any:
    """Checks values that are given in Python like those of a file, which have names and plain values alone.

    Args:
        value: A mapping, a list, or a plain value.
        place: What it is, for messages.
        depth: How many mappings and lists it is in.

    Returns:
        The same with texts in place of paths, and lists in place of tuples.

    Raises:
        ConfigurationError: If a name is no text, or a value is of another kind.
    """
    if depth > DEEPEST:
        msg = f"{place} is nested deeper than {DEEPEST} levels, but no option is; does it contain itself?"
        raise ConfigurationError(msg)
    if isinstance(value, Mapping):
        if wrong := [name for name in value if not isinstance(name, str) or not name]:
            msg = f"{place} has the name {wrong[0]!r}, but a text is needed, such as 'model.lora.r'; write it as a text"
            raise ConfigurationError(msg)
        return {str(name): plain_values(entry, f"{name} in {place}", depth + 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(entry, place, depth + 1) for entry in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return "".join(value)  # a plain one, also of an enumeration
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)  # also of NumPy
    msg = f"{place} is {value!r}, a {type(value).__name__}; give a text, a number, a truth value, a list or a mapping"
    raise ConfigurationError(msg)
