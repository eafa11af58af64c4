"""Compiles the layers of a model for training, each with the same code."""

import os
import shutil
import sys
from functools import cache, wraps
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from transformers import PreTrainedModel

from lora_lightning.backbones.attention import use_cpu_attention
from lora_lightning.compat.torch import share_compiled_code_safely
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import QuantizationSettings
from lora_lightning.lora.sharding import transformer_layers

COMPILED = "trains_compiled"  # an attribute of the classes that are made here
USUAL_COMPILERS = {"darwin": "clang++", "win32": "cl"}  # which PyTorch takes if CXX is not set; elsewhere g++


def compile_layers(model: PreTrainedModel) -> None:
    """Lets `torch.compile` compile the layers at their first training step, in place; evaluation stays as it is.

    All layers of a class share one compiled code, so that compiling takes as long as for one layer; those with hooks on
    modules inside, such as a classifier's last one, have code of their own. Sizes other than 1 are symbolic from the
    start: compiled anew for the second size, as is PyTorch's default, a run that is resumed would compute with another
    code than one that was not interrupted. What an earlier training in this process compiled is forgotten for
    the same reason. Parameters, names and saved files do not change.

    Args:
        model: Adapters in place.

    Raises:
        ConfigurationError: If the model is no stack of layers, so that nothing would be compiled.
    """
    layers = transformer_layers(model)
    if not layers:
        msg = f"model.torch_compile is true, but {type(model).__name__} has no list of layers; set it to false."
        raise ConfigurationError(msg)
    torch.compiler.reset()
    share_compiled_code_safely()
    use_cpu_attention(model)
    for layer in layers:
        if getattr(layer, COMPILED, False):  # a second training with the same model
            continue
        layer.__class__ = _compiled_class(type(layer))  # type: ignore[arg-type]  # a class is hashable


@cache
def _compiled_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A class of layers that differs in nothing but the code that trains: not in its name, nor where it is found."""
    compiled = torch.compile(plain.forward, dynamic=True)

    @wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        trains = self.training and torch.is_grad_enabled()
        return (compiled if trains else plain.forward)(self, *args, **kwargs)

    return type(plain.__name__, (plain,), {"forward": forward, "__module__": plain.__module__, COMPILED: True})


def check_compiling(trainer: Trainer, quantization: QuantizationSettings | None) -> None:
    """Refuses what does not go together with compiled layers, before any weights load.

    Args:
        trainer: Its device and strategy matter.
        quantization: How the base is quantized; `None` if it is not.

    Raises:
        ConfigurationError: If weights are sharded or quantized, or there is no C++ compiler for a CPU.
    """
    if quantization is not None:
        msg = "model.torch_compile does not work with model.quantization; set the one to false or the other to null."
        raise ConfigurationError(msg)
    if isinstance(trainer.strategy, ModelParallelStrategy):
        msg = (
            f"model.torch_compile does not work with trainer.strategy {type(trainer.strategy).__name__}, which shards "
            "weights; set the strategy to auto or ddp, or model.torch_compile to false."
        )
        raise ConfigurationError(msg)
    compiler = os.environ.get("CXX") or USUAL_COMPILERS.get(sys.platform, "g++")
    if trainer.strategy.root_device.type == "cpu" and shutil.which(compiler) is None:
        msg = (
            f"model.torch_compile needs a C++ compiler, and {compiler} is not installed; install it, name another in "
            "the environment variable CXX, or set model.torch_compile to false."
        )
        raise ConfigurationError(msg)
