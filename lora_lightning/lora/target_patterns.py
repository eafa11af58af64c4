"""Which adapters differ by module or by layer: `rank_pattern`, `alpha_pattern`, `layers_to_transform`.

PEFT ignores a pattern that matches nothing, and `layers_to_transform` wherever modules are named in full, as the
presets resolve to. Here both are looked at before there is an adapter.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from lora_lightning.errors import ConfigurationError, nearest

FIRST_NUMBER = r"(?:^|\.)(\d+)\."


def in_layers(targets: Collection[str], layers: Collection[int] | None, layers_pattern: str | None) -> list[str]:
    """Keeps the modules of some layers.

    Args:
        targets: Full dotted names.
        layers: Numbers of the layers, from 0; `None` keeps all modules.
        layers_pattern: Name of the list of layers; `None` takes the first number in a name.

    Returns:
        Of the targets, in their order, at least one.

    Raises:
        ConfigurationError: If a layer does not exist, or no name has such a list.
    """
    if layers is None:
        return list(targets)
    pattern = FIRST_NUMBER if layers_pattern is None else rf"(?:^|\.){re.escape(layers_pattern)}\.(\d+)\."
    found = {name: re.search(pattern, name) for name in targets}
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    if not numbers:
        lists = {part for name in targets for part in re.findall(r"([^.]+)\.\d+\.", name)}
        msg = f"model.lora.layers_pattern: no adapted module is inside {layers_pattern!r}; "
        raise ConfigurationError(msg + nearest(str(layers_pattern), lists))
    for layer in layers:
        if layer not in numbers.values():
            msg = (
                f"model.lora.layers_to_transform has {layer}, but the layers with adapted modules are "
                f"{_spans(set(numbers.values()))}; choose from them."
            )
            raise ConfigurationError(msg)
    return [name for name in targets if numbers.get(name) in layers]


def check_patterns(targets: Collection[str], patterns: Mapping[str, Mapping[str, float] | None]) -> None:
    """Refuses a pattern that matches no adapted module.

    Args:
        targets: Full dotted names.
        patterns: `rank_pattern` and `alpha_pattern`, by that name.

    Raises:
        ConfigurationError: If a key matches nothing; names the nearest modules.
    """
    for option, pattern in patterns.items():
        for key in pattern or {}:
            # As PEFT matches: the end of a dotted name.
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in targets):
                ends = {name.rsplit(".", 1)[-1] for name in targets}
                remedy = nearest(key, ends if "." not in key else {*ends, *targets})
                msg = f"model.lora.{option}: {key!r} matches no adapted module; {remedy}"
                raise ConfigurationError(msg)


def _spans(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    whole = ordered == list(range(ordered[0], ordered[-1] + 1)) and len(ordered) > 1
    return f"{ordered[0]} to {ordered[-1]}" if whole else ", ".join(map(str, ordered))
