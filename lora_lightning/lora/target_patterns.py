"""Checks options that differ by module or by layer: `rank_pattern`, `alpha_pattern`, `layers_to_transform`.

PEFT silently ignores a pattern that matches no module, or only modules that an earlier pattern matches too, and it
ignores `layers_to_transform` if modules are named in full, as presets name them. Here all are checked before there is
an adapter.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from lora_lightning.compat.peft import first_matching_pattern
from lora_lightning.errors import ConfigurationError, suggest_names

FIRST_NUMBER = r"(?:^|\.)(\d+)\."


def restrict_to_layers(
    targets: Collection[str], layers: Collection[int] | None, layers_pattern: str | None
) -> list[str]:
    """Keeps the modules that are in some of the layers.

    Args:
        targets: Full dotted names.
        layers: Numbers of the layers, from 0; `None` keeps all modules.
        layers_pattern: Name of the list of layers; `None` takes the first number in a name.

    Returns:
        Those of the targets, in their order; at least one.

    Raises:
        ConfigurationError: If a layer does not exist, or no target is in a list of that name.
    """
    if layers is None:
        return list(targets)
    pattern = FIRST_NUMBER if layers_pattern is None else rf"(?:^|\.){re.escape(layers_pattern)}\.(\d+)\."
    found = {name: re.search(pattern, name) for name in targets}
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    if not numbers:
        lists = {part for name in targets for part in re.findall(r"([^.]+)\.\d+\.", name)}
        msg = f"model.lora.layers_pattern: no adapted module is inside {layers_pattern!r}; "
        raise ConfigurationError(msg + suggest_names(str(layers_pattern), lists))
    for layer in layers:
        if layer not in numbers.values():
            msg = (
                f"model.lora.layers_to_transform has {layer}, but the layers with adapted modules are "
                f"{_spans(set(numbers.values()))}; choose from them."
            )
            raise ConfigurationError(msg)
    return [name for name in targets if numbers.get(name) in layers]


def check_patterns(targets: Collection[str], patterns: Mapping[str, Mapping[str, float] | None]) -> None:
    """Refuses a pattern that matches no adapted module, or that never applies.

    Args:
        targets: Full dotted names.
        patterns: `rank_pattern` and `alpha_pattern`, by that name.

    Raises:
        ConfigurationError: If a key matches nothing, with similar names of modules; or if keys before it match all of
            its modules, since PEFT applies the first key that matches.
    """
    for option, pattern in patterns.items():
        keys = list(pattern or {})
        applied = {first_matching_pattern(keys, name) for name in targets}
        for key in keys:
            matched = [name for name in targets if key_matches(key, name)]
            if not matched:
                ends = {name.rsplit(".", 1)[-1] for name in targets}
                remedy = suggest_names(key, ends if "." not in key else {*ends, *targets})
                msg = f"model.lora.{option}: {key!r} matches no adapted module; {remedy}"
                raise ConfigurationError(msg)
            if key not in applied:
                first = first_matching_pattern(keys, matched[0])
                msg = (
                    f"model.lora.{option}: {key!r} never applies, because the first key that matches a module does, "
                    f"and {first!r} comes before it and matches {matched[0]} too; move {key!r} to the front, or leave "
                    "it out."
                )
                raise ConfigurationError(msg)


def key_matches(key: str, name: str) -> bool:
    """Whether a key of a pattern matches the end of a dotted name, as PEFT compares them."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _spans(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    is_range = ordered == list(range(ordered[0], ordered[-1] + 1)) and len(ordered) > 1
    return f"{ordered[0]} to {ordered[-1]}" if is_range else ", ".join(map(str, ordered))
