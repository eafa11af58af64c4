"""Settings as plain values by dotted name: how two sets of them differ, and what identifies a run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import yaml

# How a command starts, not what it does.
NOT_OF_THE_RUN = ("resume", "ckpt_path", "config", "allow_other_base", "allow_changed_data")


def to_plain(value: Any) -> Any:
    """A dataclass object as nested dictionaries; any other value unchanged."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def differences(here: Mapping[str, Any], there: Mapping[str, Any], where: str) -> list[str]:
    """Lists how two flat mappings differ; a name that one of them lacks counts as `None` there.

    Args:
        here: Values by dotted name, from `flatten`.
        there: The other values.
        where: How to call the place of the other values, such as "in the checkpoint".

    Returns:
        One text per difference, with both values, sorted by name.
    """
    return [
        f"{name} is {_short(here.get(name))} here and {_short(there.get(name))} {where}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings and dataclasses into one mapping with dotted names.

    Args:
        values: A mapping, a dataclass, or a plain value.
        prefix: Name of `values` itself.

    Returns:
        Plain values by dotted name.
    """
    values = to_plain(values)
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def settings_in(config: str) -> dict[str, Any]:
    """Reads a run's settings from the text of its `config.yaml`.

    Args:
        config: YAML.

    Returns:
        Plain values by dotted name, without those that say how the command started; empty if the text is not YAML.
    """
    try:
        settings = flatten(yaml.safe_load(config) or {})
    except (yaml.YAMLError, ValueError):  # ValueError: such as a date that does not exist
        return {}
    return {name: value for name, value in settings.items() if name.partition(".")[0] not in NOT_OF_THE_RUN}


def identity(settings: Mapping[str, Any]) -> str:
    """Identifies a run by its settings with all defaults filled in, however their text was written.

    Args:
        settings: Plain values by dotted name, from `settings_in`.

    Returns:
        Hexadecimal digits, the same for the same settings.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def text_fingerprint(config: str) -> str:
    """Tells which `config.yaml` a checkpoint belongs to.

    Args:
        config: The file's text; comments on top and `resume:` do not count.

    Returns:
        Hexadecimal digits.
    """
    lines = [line for line in config.splitlines() if not line.startswith(("#", "resume:"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:  # noqa: PLR2004  # enough to recognise it
        return f"a list of {len(value)} ({value[0]!r}, ...)"
    return repr(value)
