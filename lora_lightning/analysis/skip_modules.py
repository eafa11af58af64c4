"""Which modules to leave unquantized under a budget of bytes, and random choices of the same size to compare with."""

from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 1000  # for each list


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
    return _fill(extra_bytes, sorted(harmful, key=lambda name: -effects[name] / extra_bytes[name]), budget)


def random_skip_modules(
    extra_bytes: Mapping[str, int], chosen: Sequence[str], count: int, seed: int = 0
) -> tuple[tuple[str, ...], ...]:
    """Draws lists of modules at random that take as many bytes as a choice, or as little less as there are.

    Each list is the nearest in bytes of a thousand random ones, each filled with every module that still fits.

    Args:
        extra_bytes: Bytes that each module takes more if it is not quantized.
        chosen: The choice.
        count: How many lists.
        seed: Of the draws.

    Returns:
        Names in random order, by list; fewer lists if there are not so many that differ from the choice and from each
        other.
    """
    random, names = np.random.default_rng(seed), list(extra_bytes)
    size = sum(extra_bytes[name] for name in chosen)
    known, found = {frozenset(chosen), frozenset[str]()}, []
    for _ in range(count):
        drawn = [
            _fill(extra_bytes, [names[place] for place in random.permutation(len(names))], size) for _ in range(DRAWS)
        ]
        other = [each for each in drawn if frozenset(each) not in known]
        if not other:
            break
        nearest = max(other, key=lambda each: sum(extra_bytes[name] for name in each))
        known.add(frozenset(nearest))
        found.append(nearest)
    return tuple(found)


def _fill(extra_bytes: Mapping[str, int], names: Sequence[str], size: int) -> tuple[str, ...]:
    """Takes each module that still fits."""
    taken, left = [], size
    for name in names:
        if extra_bytes[name] <= left:
            taken.append(name)
            left -= extra_bytes[name]
    return tuple(taken)
