"""Finds layers whose weight a model reads without calling the layer, so that an adapter there would have no effect."""

import inspect
import re
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

from lora_lightning.compat.peft import is_read_without_a_call

ELSEWHERE = re.compile("init|reset")  # methods that read weights before there are adapters
READ = r"self\.{}\.weight\b(?!\.(?:dtype|device|shape|size|ndim))"
MULTIPLIED = r"self\.{}\.weight @"


def is_never_called(model: nn.Module, name: str) -> bool:
    """Returns whether a model may compute with a layer's weight without calling the layer, on some device at least.

    PEFT knows some of Mamba's layers by their names. Here the code of a state-space mixer is read as well: its
    kernels for GPUs take the weights of `x_proj`, `dt_proj` and `out_proj`, and Mamba and Jamba multiply with that of
    `dt_proj` on every device. `nn.MultiheadAttention` takes the weight of its `out_proj`.

    Args:
        model: A transformers model, before adapters are attached.
        name: Dotted name of one of its linear layers.
    """
    parent, _, last = name.rpartition(".")
    if is_read_without_a_call(model, last) or isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        return True
    return _mixer_has(model, parent, READ.format(re.escape(last)))


def is_multiplied_directly(model: nn.Module, name: str) -> bool:
    """Returns whether a model multiplies with a layer's weight itself on every device, which a packed one cannot.

    Args:
        model: A transformers model.
        name: Dotted name of one of its linear layers.
    """
    parent, _, last = name.rpartition(".")
    return _mixer_has(model, parent, MULTIPLIED.format(re.escape(last)))


def is_written_from_outside(model: nn.Module, name: str) -> bool:
    """Returns whether the code of a module around another one sets attributes of that one, such as a recurrent state.

    Args:
        model: A transformers model.
        name: Dotted name of the inner module.
    """
    parts = name.split(".")
    around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    written = rf"\b{re.escape(parts[-1])}\.\w+ = "
    return any(re.search(written, _source(type(module))) for module in around)  # type: ignore[arg-type]


def _mixer_has(model: nn.Module, name: str, pattern: str) -> bool:
    """Whether the code of a state-space mixer has a pattern; False for any other module."""
    module = model.get_submodule(name)
    return hasattr(module, "A_log") and re.search(pattern, _source(type(module))) is not None  # type: ignore[arg-type]  # a class is hashable


@cache
def _source(mixer: Any) -> str:
    """The code of a module's class, and of those that it inherits from outside PyTorch, apart from initialization."""
    functions = (
        function
        for base in mixer.__mro__
        for name, function in vars(base).items()
        if base.__module__.partition(".")[0] != "torch" and not ELSEWHERE.search(name) and inspect.isfunction(function)
    )
    return "\n".join(map(_source_of, functions))


def _source_of(function: FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except OSError:  # made at run time
        return ""
