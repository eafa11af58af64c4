"""Settings as plain values by dotted name: their differences, and the hashes that identify a run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import yaml

NOT_SET = "(not set)"  # what a missing name may count as
# How a command starts, not what it does.
NOT_OF_THE_RUN = ("resume", "ckpt_path", "config", "allow_other_base", "allow_changed_data", "base_model_id")


def to_plain_values(value: Any) -> Any:
    """Returns a dataclass object as nested dictionaries, and any other value unchanged."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def list_differences(
    here: Mapping[str, Any], there: Mapping[str, Any], where: str, missing: object = None
) -> list[str]:
    """Lists the differences between two flat mappings.

    Args:
        here: Values by dotted name, from `flatten`.
        there: The other values.
        where: Where the other values come from, in words such as "in the checkpoint".
        missing: What a missing name counts as.

    Returns:
        One text per difference, with both values, sorted by name.
    """
    return [
        f"{name} is {_short(here.get(name, missing))} here and {_short(there.get(name, missing))} {where}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name, missing) != there.get(name, missing)
    ]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings and dataclasses into one mapping with dotted names.

    Args:
        values: A mapping, a dataclass, or a plain value.
        prefix: The dotted name of `values`.

    Returns:
        Plain values by dotted name.
    """
    values = to_plain_values(values)
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def settings_in(config: str) -> dict[str, Any]:
    """Reads a run's settings from the text of its `config.yaml`.

    Args:
        config: The text of the file.

    Returns:
        Plain values by dotted name, without `resume`, `ckpt_path` and `config`; empty if the text is not YAML.
    """
    try:
        settings = flatten(yaml.safe_load(config) or {})
    except (yaml.YAMLError, ValueError):  # ValueError: for example a date that does not exist
        return {}
    return {name: value for name, value in settings.items() if name.partition(".")[0] not in NOT_OF_THE_RUN}


def settings_identity(settings: Mapping[str, Any]) -> str:
    """Returns a hash that identifies a run by its settings, however their text was written.

    Args:
        settings: Plain values by dotted name, from `settings_in`, with all defaults filled in.

    Returns:
        Hexadecimal digits that are equal for equal settings.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def text_fingerprint(config: str) -> str:
    """Returns a hash of a `config.yaml`, which identifies the run of a checkpoint.

    Args:
        config: The text of the file. Lines that start with `#` or `resume:` are ignored.

    Returns:
        Hexadecimal digits.
    """
    lines = [line for line in config.splitlines() if not line.startswith(("#", "resume:"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:  # noqa: PLR2004  # enough to recognize it
        return f"a list of {len(value)} ({value[0]!r}, ...)"
    return repr(value)
