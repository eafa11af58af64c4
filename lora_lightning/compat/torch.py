"""Private names of PyTorch 2.13."""

from collections.abc import Callable
from typing import Any, Self

import torch._dynamo
import torch.fx.experimental._config
from torch import Tensor, nn

Conversion = Callable[[Tensor], Tensor]
VARIANTS = 64  # of compiled code; PyTorch's 8 are few for layers of several kinds, and then nothing is compiled
RECEIVES_TENSORS = "torch.multiprocessing.reductions"  # the module that takes a tensor over from another process


def share_compiled_code_safely() -> None:
    """Lets `torch.compile` use one code for several layers and sizes where it holds for them, and only there."""
    torch._dynamo.config.recompile_limit = VARIANTS
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # else a layer with a hook runs the code of one without
    torch.fx.experimental._config.use_duck_shape = False  # else sizes that are equal in the first batch stay equal


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


def in_place_changes(tensor: Tensor) -> int:
    """How often a tensor, or one that shares its memory, was changed in place, as far as autograd counts it."""
    return tensor._version
