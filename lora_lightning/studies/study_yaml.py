"""Reads YAML as the options of `fit` are read: `1e-3` is a number, and `2024-01-01` a text."""

import re
from pathlib import Path
from typing import Any

import yaml

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads dates as texts, which JSON can hold."""


_Loader.add_constructor(TIMESTAMP, yaml.SafeLoader.construct_yaml_str)


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
    return _with_numbers(yaml.load(text, Loader=_Loader))  # noqa: S506  # derived from the safe one


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
