"""Observes the inputs and output gradients of layers while batches run forward and backward."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Observation = Callable[[str, Tensor, Tensor], None]  # of a layer's name, inputs and output gradients


@contextmanager
def observed_gradients(layers: Mapping[str, Any], add: Observation) -> Iterator[None]:
    """Reports the inputs and output gradients of every call of the layers.

    Args:
        layers: Modules by name. Where nothing that a layer's output depends on is trainable, its output is made to
            require a gradient.
        add: Is called in each backward pass, once for each call of a layer in the forward pass.

    Yields:
        Nothing.
    """
    handles = [layer.register_forward_hook(partial(_watch_output, name, add)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_output(name: str, add: Observation, _layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
    if not torch.is_grad_enabled():
        return
    if not output.requires_grad:
        output.requires_grad_()
    inputs = arguments[0].detach()
    output.register_hook(lambda gradient: add(name, inputs, gradient))  # type: ignore[no-untyped-call]
