"""Private names of PyTorch 2.13."""

from collections.abc import Callable
from typing import Any, Self

import torch._dynamo
from torch import Tensor, nn

Conversion = Callable[[Tensor], Tensor]
VARIANTS = 64  # of compiled code; PyTorch's 8 are few for layers of several kinds, and then nothing is compiled
RECEIVES_TENSORS = "torch.multiprocessing.reductions"  # the module that takes a tensor over from another process


def allow_variants_of_compiled_code() -> None:
    """Lets `torch.compile` compile the same code more often: for layers with and without a window, for example."""
    torch._dynamo.config.recompile_limit = VARIANTS


class HookedConversion(nn.Module):
    """A module with a public hook through which `to`, `half`, `cuda` and their like convert its tensors.

    PyTorch calls one function for all of them, and has no public name for it.
    """

    def convert_tensors(self, convert: Conversion, *, recurse: bool) -> None:
        """Converts every tensor of the module in place; override to exempt some.

        Args:
            convert: Moves a tensor to another device, casts it, or both.
            recurse: Whether the modules inside are converted too.
        """
        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Conversion, recurse: bool = True) -> Self:
        self.convert_tensors(fn, recurse=recurse)
        return self


def convert_tensors(module: nn.Module, convert: Conversion) -> None:
    """Converts every tensor of a module in place, as `module.to` does.

    Args:
        module: Any.
        convert: Moves a tensor to another device, casts it, or both.
    """
    module._apply(convert)  # type: ignore[no-untyped-call]


def hide_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Lets a module find another tensor under a parameter's name; the parameter itself stays as it is.

    Args:
        module: Whose attribute to replace.
        name: The parameter's name in it.
        tensor: What to find instead.
    """
    module.__dict__[name] = tensor


def show_parameter(module: nn.Module, name: str) -> None:
    """Undoes `hide_parameter`.

    Args:
        module: The module.
        name: The parameter's name in it.
    """
    module.__dict__.pop(name, None)


def parameter_of(module: nn.Module, name: str) -> Any:
    """Returns a parameter, also while `hide_parameter` hides it.

    Args:
        module: The module.
        name: The parameter's name in it.
    """
    return module._parameters[name]


def add_summary(writer: Any, summary: Any) -> None:
    """Adds a summary to an event file, which is opened again if it was closed; no public method takes any summary.

    Args:
        writer: A `SummaryWriter`.
        summary: A `Summary`.
    """
    writer._get_file_writer().add_summary(summary)
