"""The linear layers of a pretrained model, with or without adapters on them; other weights in them for a while."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lora_lightning.compat.transformers import Conv1D
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.parameter_names import plain_name
from lora_lightning.lora.target_modules import is_linear


def base_linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The pretrained linear layers themselves, below adapters.

    Args:
        model: A transformers model, a PEFT model, or a task that holds one.

    Returns:
        Module by dotted name in the pretrained model, in the model's order: `nn.Linear`, bitsandbytes' layers and
        GPT-2's `Conv1D`; of a module that trains in full beside adapters the trained copy.
    """
    found = {}
    for name, module in model.named_modules():
        plain = plain_name(f"{name}.weight") if is_linear(module) else None
        if plain is not None:
            found[plain.removesuffix(".weight")] = module
    return found


def called_linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that the model calls: PEFT's where there is an adapter, which may not call the one below it.

    Args:
        model: As in `base_linear_layers`.

    Returns:
        Module by the names of `base_linear_layers`.
    """
    adapted = adapted_layers(model)
    return {name: cast("nn.Module", adapted.get(name, layer)) for name, layer in base_linear_layers(model).items()}


def base_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer that is not quantized, (out_features, in_features), detached."""
    weight = cast("Tensor", layer.weight).detach()
    return weight.T if isinstance(layer, Conv1D) else weight


@contextmanager
@torch.no_grad()
def weights_replaced(layers: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Runs a model with other weights in some of its layers, then puts the old ones back bit for bit.

    Args:
        layers: From `base_linear_layers`, not quantized; weights are overwritten in place.
        weights: (out_features, in_features), floating dtype, by names among those of the layers.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for name, weight in weights.items():
            stored = cast("Tensor", layers[name].weight).data
            stack.callback(stored.copy_, stored.clone())
            stored.copy_(weight.T if isinstance(layers[name], Conv1D) else weight)
        yield
