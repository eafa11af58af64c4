"""Cuts a network to a few layers for a while; what they hold tells what all of them would hold."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lora_lightning.lora.config import LoraSettings

FEW = (2, 4)  # layers that are traced


def layer_lists(model: nn.Module) -> list[nn.ModuleList]:
    """The outermost lists of modules: one of most models, two of an encoder-decoder."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]


def depths_to_trace(model: nn.Module, settings: LoraSettings | None) -> tuple[int, ...]:
    """How many layers to trace.

    Args:
        model: The transformers model, adapters in place.
        settings: The adapter's.

    Returns:
        Two numbers of layers, of which the rest follows; or the number of all layers alone, if there are few, or if
        the layers differ.
    """
    lists = layer_lists(model)
    depth = max((len(each) for each in lists), default=0)
    is_uneven = len({len(each) for each in lists}) > 1 or (settings is not None and _names_layers(settings))
    kinds = {tuple((type(part), _size(part)) for part in layer.modules()) for each in lists for layer in each[1:-1]}
    if depth <= FEW[1] or is_uneven or len(kinds) > len(lists):
        return (depth,)
    return FEW


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters(recurse=False))


def _names_layers(settings: LoraSettings) -> bool:
    """Whether settings treat some layers differently from others."""
    names = [*(settings.rank_pattern or {}), *(settings.exclude_modules or [])]
    names += [] if isinstance(settings.target_modules, str) else settings.target_modules
    return settings.layers_to_transform is not None or any(any(map(str.isdigit, name)) for name in names)


@contextmanager
def cut_to(model: nn.Module, depth: int) -> Iterator[None]:
    """Leaves the first layers and the last one in a model for a while.

    Args:
        model: Changed in place, and restored.
        depth: How many layers remain in each list.
    """
    lists = layer_lists(model)
    complete = [list(each) for each in lists]
    for each, layers in zip(lists, complete, strict=True):
        if len(layers) > depth:
            _fill(each, [*layers[: depth - 1], layers[-1]])
    try:
        yield
    finally:
        for each, layers in zip(lists, complete, strict=True):
            _fill(each, layers)


def _fill(modules: nn.ModuleList, layers: list[nn.Module]) -> None:
    del modules[:]
    modules.extend(layers)
