"""Which modules to leave unquantized under a budget of bytes, and random choices of the same size to compare with."""

from collections.abc import Mapping

import numpy as np


def choose_skip_modules(effects: Mapping[str, float], extra_bytes: Mapping[str, int], budget: int) -> tuple[str, ...]:
    """Chooses the modules whose quantization costs the most quality per byte that it saves.

    Args:
        effects: Loss of quality by module; modules without a loss, or with an unknown one, are not chosen.
        extra_bytes: Bytes that the module takes more if it is not quantized, by the same names.
        budget: Bytes that all of them may take more.

    Returns:
        Names, the most valuable first; empty if none fits.
    """
    harmful = [name for name, effect in effects.items() if effect > 0]
    chosen, left = [], budget
    for name in sorted(harmful, key=lambda name: -effects[name] / extra_bytes[name]):
        if extra_bytes[name] <= left:
            chosen.append(name)
            left -= extra_bytes[name]
    return tuple(chosen)


def random_skip_modules(extra_bytes: Mapping[str, int], size: int, seed: int) -> tuple[str, ...]:
    """Draws modules at random that take about as many bytes as a choice, and no more.

    Args:
        extra_bytes: Bytes that each module takes more if it is not quantized.
        size: Bytes of the choice.
        seed: Of the draw.

    Returns:
        Names in random order: each module that still fits, until none does.
    """
    names = list(extra_bytes)
    chosen, left = [], size
    for place in np.random.default_rng(seed).permutation(len(names)):
        if extra_bytes[names[place]] <= left:
            chosen.append(names[place])
            left -= extra_bytes[names[place]]
    return tuple(chosen)
