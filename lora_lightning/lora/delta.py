"""The update of each adapted layer, dW = scaling * B @ A, as its factors, without forming an (out, in) matrix.

A parameter that holds all experts of a layer has an update for each expert. PEFT keeps their factors in one A and one
B: the rows of A are those of the first expert, then those of the second; the columns of B are the first ones of all
experts, then the second ones (since PEFT 0.19).
"""

import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lora_lightning.compat.peft import AdaLoraLayer, LoraLayer, ParamWrapper
from lora_lightning.lora.initial_factors import initial_delta, initial_factors
from lora_lightning.lora.parameter_names import ADAPTER, name_without_wrappers
from lora_lightning.lora.quantized import dequantized_weight

LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class AdapterDelta:
    """dW = scaling * B @ A of one layer, or of one expert: its change from the pretrained weight.

    PiSSA and OLoRA start with a part of the pretrained weight, A0 and B0, which is not a change of it: for them A is
    stacked on A0, B is beside -B0, and r is twice that of the adapter. Under DoRA this is the low-rank part of the
    direction, before the magnitude rescales the rows of W + dW.

    Attributes:
        module: Dotted name in the pretrained model, for example `encoder.layer.3.attention.self.query`, or of a
            parameter, for example `model.layers.0.mlp.experts.down_proj`.
        A: (r, in_features), float32, detached; under AdaLoRA its rows are scaled by `lora_E`.
        B: (out_features, r), float32, detached.
        scaling: `lora_alpha / r`, or the variant's own scaling.
        expert: The expert's number if the parameter holds several.
    """

    module: str
    A: Tensor
    B: Tensor
    scaling: float
    expert: int | None = None

    @property
    def name(self) -> str:
        """The module, with the expert's number, for example `model.layers.0.mlp.experts.down_proj[3]`."""
        return self.module if self.expert is None else f"{self.module}[{self.expert}]"

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
        PEFT's layer by dotted name in the pretrained model, of the layer or of the parameter, in the model's order;
        empty without adapters.
    """
    layers: dict[str, LoraLayer] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or ADAPTER not in module.scaling:
            continue
        plain = name_without_wrappers(name)
        layers[f"{plain}.{module.parameter_name}" if isinstance(module, ParamWrapper) else plain] = module
    return layers


def adapter_factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """The two matrices of a layer's adapter, as they are stored.

    Args:
        layer: Of `adapted_layers`.

    Returns:
        A, (r, in_features), and B, (out_features, r); the parameters themselves, with their gradients. Of a parameter
        that holds experts A is (experts * r, in_features) and B (out_features, r * experts).
    """
    if ADAPTER in layer.lora_embedding_A:
        return layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    factors = (a, b) if isinstance(layer, AdaLoraLayer) else (a.weight, b.weight)
    return cast("tuple[Tensor, Tensor]", factors)


def expert_factors(layer: LoraLayer, a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Takes the factors of a layer's experts apart.

    Args:
        layer: Of `adapted_layers`.
        a: A as it is stored, from `adapter_factors`.
        b: B as it is stored.

    Returns:
        A, (r, in_features), and B, (out_features, r), of each expert, views of the tensors given; one pair for a layer
        without experts.
    """
    experts = layer.num_experts if isinstance(layer, ParamWrapper) else 1
    if experts == 1:
        return [(a, b)]
    return list(zip(a.view(experts, -1, a.shape[1]), b.view(len(b), -1, experts).unbind(dim=2), strict=True))


def layer_deltas(module: str, layer: LoraLayer) -> list[AdapterDelta]:
    """The update of one layer, or of each expert that its parameter holds.

    Args:
        module: The name of the layer or parameter, kept in the result.
        layer: Of `adapted_layers`. Under FSDP2 every process has to call this: shards are gathered.

    Returns:
        Factors in float32, as in `layer_delta`; one for a layer without experts.
    """
    if not isinstance(layer, ParamWrapper):
        return [layer_delta(module, layer)]
    pairs = expert_factors(layer, *(full_tensor(factor).float() for factor in adapter_factors(layer)))
    scaling, alone = float(layer.scaling[ADAPTER]), len(pairs) == 1
    return [AdapterDelta(module, *pair, scaling, None if alone else number) for number, pair in enumerate(pairs)]


def layer_delta(module: str, layer: LoraLayer) -> AdapterDelta:
    """The update of one layer that holds no experts.

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
        One update for each layer, or each expert of it, in the model's order; empty without adapters.
    """
    return [delta for name, layer in adapted_layers(model).items() for delta in layer_deltas(name, layer)]


def pretrained_weight(layer: LoraLayer) -> Tensor:
    """The pretrained weight under an adapter: dequantized, and with the part that PiSSA and OLoRA took out of it.

    Args:
        layer: Of `adapted_layers`.

    Returns:
        (out_features, in_features), to which B @ A can be added, float32, detached; the weights of GPT-2's `Conv1D` and
        of embeddings are transposed. Of a parameter that holds experts (experts, out_features, in_features).
    """
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper):
        weight = full_tensor(adapted_parameter(layer)).float()
    else:
        weight = full_tensor(dequantized_weight(base)).float()
    if initial_factors(layer) is not None:
        weight = weight + initial_delta(layer)
    return weight.mT if is_transposed(layer) else weight


def adapted_parameter(layer: LoraLayer) -> nn.Parameter:
    """The frozen parameter under an adapter: the weight of a layer, or the parameter that PEFT wraps."""
    name = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
    return cast("nn.Parameter", getattr(layer.get_base_layer(), name))


def adapted_parameter_name(module: str, layer: LoraLayer) -> str:
    """The name of `adapted_parameter` in the pretrained model.

    Args:
        module: The key of the layer in `adapted_layers`.
        layer: The layer.

    Returns:
        Dotted.
    """
    return module if isinstance(layer, ParamWrapper) else f"{module}.weight"


def is_transposed(layer: LoraLayer) -> bool:
    """Whether the frozen weight is stored as (in_features, out_features).

    So are those of GPT-2's `Conv1D`, of embeddings, and of the experts of GPT-OSS and Llama 4.
    """
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper):
        return layer.num_experts > 1 and bool(getattr(base, "is_transposed", False))
    return bool(getattr(layer, "fan_in_fan_out", False)) or isinstance(base, nn.Embedding)


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all processes if it is sharded (collective), detached."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).detach()
