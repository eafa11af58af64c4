"""The update of each adapted layer, dW = scaling * B @ A, as its factors, without forming an (out, in) matrix."""

import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lora_lightning.compat.peft import AdaLoraLayer, LoraLayer
from lora_lightning.lora.initial_factors import initial_delta, initial_factors
from lora_lightning.lora.parameter_names import ADAPTER, pretrained_name
from lora_lightning.lora.quantized import dequantized_weight

LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class AdapterDelta:
    """dW = scaling * B @ A of one layer: its change from the pretrained weight.

    PiSSA and OLoRA start with a part of the pretrained weight, A0 and B0, which is not a change of it: for them A is
    stacked on A0, B is beside -B0, and r is twice that of the adapter. Under DoRA this is the low-rank part of the
    direction, before the magnitude rescales the rows of W + dW.

    Attributes:
        module: Dotted name in the pretrained model, for example `encoder.layer.3.attention.self.query`.
        A: (r, in_features), float32, detached; under AdaLoRA its rows are scaled by `lora_E`.
        B: (out_features, r), float32, detached.
        scaling: `lora_alpha / r`, or the variant's own scaling.
    """

    module: str
    A: Tensor
    B: Tensor
    scaling: float

    @property
    def r(self) -> int:
        """The number of rows of A, an upper bound of the update's rank."""
        return self.A.shape[0]

    @property
    def layer(self) -> int | None:
        """The number of the layer, which is the first number in the name; `None` outside numbered layers."""
        return split_layer_number(self.module)[0]

    @property
    def kind(self) -> str:
        """The name within the layer, for example `attention.self.query`."""
        return split_layer_number(self.module)[1]

    def dense(self) -> Tensor:
        """The update itself.

        Returns:
            (out_features, in_features), float32.
        """
        return self.scaling * (self.B @ self.A)


def split_layer_number(module: str) -> tuple[int | None, str]:
    """Splits a module's name into the number of its layer and its name within the layer.

    Args:
        module: Dotted name.

    Returns:
        `(3, "attention.self.query")` for `encoder.layer.3.attention.self.query`; `(None, module)` without a number.
    """
    found = LAYER_NUMBER.search(module)
    return (None, module) if found is None else (int(found[1]), module[found.end() :])


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that carry an adapter.

    Args:
        model: A PEFT model, or anything that contains one.

    Returns:
        PEFT's layer by dotted name in the pretrained model, in the model's order; empty without adapters.
    """
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.scaling:
            layers[pretrained_name(name)] = module
    return layers


def adapter_factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """The two matrices of a layer's adapter, as they are stored.

    Args:
        layer: Of `adapted_layers`.

    Returns:
        A, (r, in_features), and B, (out_features, r); the parameters themselves, with their gradients.
    """
    if ADAPTER in layer.lora_embedding_A:
        return layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    factors = (a, b) if isinstance(layer, AdaLoraLayer) else (a.weight, b.weight)
    return cast("tuple[Tensor, Tensor]", factors)


def layer_delta(module: str, layer: LoraLayer) -> AdapterDelta:
    """The update of one layer.

    Args:
        module: The layer's name, kept in the result.
        layer: Of `adapted_layers`. Under FSDP2 every process has to call this: shards are gathered.

    Returns:
        Its factors in float32; they share memory with the parameters if those are float32 and the layer started at
        dW = 0.
    """
    a, b = (full_tensor(factor).float() for factor in adapter_factors(layer))
    scaling = float(layer.scaling[ADAPTER])
    if isinstance(layer, AdaLoraLayer):
        a = a * full_tensor(layer.lora_E[ADAPTER]).float()
        scaling /= float(layer.ranknum[ADAPTER]) + 1e-5  # as PEFT computes it
    if (initial := initial_factors(layer)) is not None:
        a0, b0 = (full_tensor(factor).float() for factor in initial)
        a, b = torch.cat([a, a0]), torch.cat([b, -b0], dim=1)
    return AdapterDelta(module, a, b, scaling)


def adapter_deltas(model: nn.Module) -> list[AdapterDelta]:
    """The updates of all adapted layers.

    Args:
        model: A PEFT model, or anything that contains one.

    Returns:
        One update for each layer, in the model's order; empty without adapters.
    """
    return [layer_delta(name, layer) for name, layer in adapted_layers(model).items()]


def pretrained_weight(layer: LoraLayer) -> Tensor:
    """The pretrained weight under an adapter: dequantized, and with the part that PiSSA and OLoRA took out of it.

    Args:
        layer: Of `adapted_layers`.

    Returns:
        (out_features, in_features), to which B @ A can be added, float32, detached; the weights of GPT-2's `Conv1D` and
        of embeddings are transposed.
    """
    base = layer.get_base_layer()
    weight = full_tensor(dequantized_weight(base)).float()
    if initial_factors(layer) is not None:
        weight = weight + initial_delta(layer)
    return weight.T if is_transposed(layer) else weight


def is_transposed(layer: LoraLayer) -> bool:
    """Whether the frozen weight is stored as (in_features, out_features), as in GPT-2's `Conv1D` and in embeddings."""
    return bool(getattr(layer, "fan_in_fan_out", False)) or isinstance(layer.get_base_layer(), nn.Embedding)


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all processes if it is sharded (collective), detached."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).detach()
