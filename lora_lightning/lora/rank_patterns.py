"""Writes ranks by layer as PEFT's `rank_pattern` and `alpha_pattern`, with names as short as they can be."""

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from lora_lightning.compat.peft import first_matching_pattern
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.target_patterns import key_matches
from lora_lightning.lora.targets import rank_of

Value = TypeVar("Value", int, float)


def layer_scaling(name: str, settings: LoraSettings) -> float:
    """The factor of B A in one layer, as the settings' `r`, `lora_alpha` and patterns give it.

    Args:
        name: Full dotted name of the layer.
        settings: Of LoRA, without AdaLoRA.

    Returns:
        alpha / r, or alpha / sqrt(r) with `use_rslora`.
    """
    pattern = settings.alpha_pattern or {}
    alpha = float(pattern.get(first_matching_pattern(list(pattern), name), settings.lora_alpha))
    return alpha / scaling_divisor(rank_of(name, settings), settings)


def scaling_divisor(rank: int, settings: LoraSettings) -> float:
    """What PEFT divides alpha by: r, or its square root with `use_rslora` (Kalajdzievski 2023, arXiv 2312.03732)."""
    return float(rank**0.5 if settings.use_rslora else rank)


def most_common(values: Mapping[str, Value]) -> Value:
    """The value of most layers, which needs no pattern; the first one of those that are equally common."""
    found = list(values.values())
    return max(dict.fromkeys(found), key=found.count)


def shortest_patterns(values: Mapping[str, Value], default: Value) -> dict[str, Value]:
    """A pattern that gives every layer its value.

    PEFT takes a key as a regular expression for the end of a dotted name, and applies the first key that matches. A key
    here is the shortest end of a name that matches no layer of another value, so the order of keys does not matter.

    Args:
        values: By full dotted name, of all layers with an adapter.
        default: The value of layers that no key matches: `r` or `lora_alpha`.

    Returns:
        Value by key; empty if all layers have the default.
    """
    pattern: dict[str, Value] = {}
    for name, value in values.items():
        if value != default and not any(key_matches(key, name) for key in pattern):
            pattern[_shortest_key(name, values)] = value
    return pattern


def _shortest_key(name: str, values: Mapping[str, Value]) -> str:
    for key in _possible_keys(name):
        matched = [other for other in values if key_matches(key, other)]
        if name in matched and all(values[other] == values[name] for other in matched):
            return key
    return f"^{re.escape(name)}"  # the name is the end of another one


def _possible_keys(name: str) -> Iterator[str]:
    """Ends of a name from the shortest, unescaped and escaped: `.` matches any letter, but few names need an escape."""
    parts = name.split(".")
    for start in range(len(parts) - 1, -1, -1):
        end = ".".join(parts[start:])
        if re.fullmatch(r"[\w.]+", end):
            yield end
        yield re.escape(end)
