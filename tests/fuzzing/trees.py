"""Random places in nested lists and mappings, and random choices, for the mutations of configs and of data."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

Place = tuple[str | int, ...]  # keys and list positions from the root
Item = TypeVar("Item")


def pick(items: Sequence[Item], random: np.random.Generator) -> Item:
    """One of the items."""
    return items[int(random.integers(len(items)))]


def places(tree: Any, inside: Place = ()) -> Iterator[Place]:
    """Every place below the root."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*inside, key)
        yield from places(value, (*inside, key))


def at(tree: Any, place: Place) -> Any:
    """What stands at a place."""
    for key in place:
        tree = tree[key]
    return tree


def any_place(tree: Any, random: np.random.Generator, keep: Callable[[Any], bool] = lambda _: True) -> Place:
    """A random place that holds what `keep` wants; any one if there is none."""
    there = list(places(tree))
    return pick([place for place in there if keep(at(tree, place))] or there, random)


def is_leaf(value: Any) -> bool:
    """Whether nothing is below it."""
    return not isinstance(value, dict | list)


def misspelt(text: str, random: np.random.Generator) -> str:
    """A text with a letter less or more, in the other case, or in the plural."""
    place = int(random.integers(len(text))) if text else 0
    start, end = text[:place], text[place:]
    return pick([start + end[1:], f"{start}x{end}", text.swapcase(), f"{text}s"], random)
