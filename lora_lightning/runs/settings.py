"""Settings as plain values by dotted name, and where two sets of them differ."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any


def to_plain(value: Any) -> Any:
    """A dataclass object as nested dictionaries; anything else as it is."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def differences(here: Mapping[str, Any], there: Mapping[str, Any], where: str) -> list[str]:
    """Where two flat mappings differ; a name that one of them lacks is `None` there.

    Args:
        here: Values by dotted name, from `flatten`.
        there: The others.
        where: What to call the place of the others, such as "in the checkpoint".

    Returns:
        One text a difference, with both values, sorted by name.
    """
    return [
        f"{name} is {_short(here.get(name))} here and {_short(there.get(name))} {where}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and dataclasses as one mapping with dotted names.

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


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:  # noqa: PLR2004  # enough to recognise it
        return f"a list of {len(value)} ({value[0]!r}, ...)"
    return repr(value)
