"""Gives every adapter of a model another rank, with its scaling in the factors, so that alpha / r is 1 everywhere.

Loaders of adapters differ in which alpha and which r they read; if alpha is r, they cannot differ in the scaling.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from lora_lightning.lora.delta import adapted_layers, adapter_factors, expert_factors
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.truncation import decompose_factors

Decomposition = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DecomposedLayer:
    """The update dW of one layer as its singular value decomposition, scaling included.

    Attributes:
        experts: U, (out_features, n), S, (n,), and Vh, (n, in_features), float64, of each expert; one of a layer
            without experts.
        parameters: Of the factors for one rank: (in_features + out_features) * experts.
    """

    experts: tuple[Decomposition, ...]
    parameters: int

    @property
    def spectrum(self) -> Tensor:
        """Singular values, (n,), descending; of several experts the root of the sum of their squares."""
        return torch.stack([s for _, s, _ in self.experts]).square().sum(dim=0).sqrt()

    def factors(self, k: int, stored: int) -> tuple[Tensor, Tensor]:
        """The best factors of rank k, padded with zeros.

        Args:
            k: The rank to keep.
            stored: Rows of A and columns of B of each expert; at least k.

        Returns:
            A, (experts * stored, in_features), and B, (out_features, stored * experts), float32, as PEFT orders them.
        """
        pairs = [_padded_factors(each, k, stored) for each in self.experts]
        a = torch.cat([a for a, _ in pairs])
        b = torch.stack([b for _, b in pairs], dim=2).flatten(start_dim=1)
        return a.float(), b.float()


def _padded_factors(found: Decomposition, k: int, stored: int) -> tuple[Tensor, Tensor]:
    u, s, vh = found
    kept = min(k, len(s))
    root = s[:kept].sqrt()
    a, b = vh.new_zeros(stored, vh.shape[1]), u.new_zeros(u.shape[0], stored)
    a[:kept] = root[:, None] * vh[:kept]
    b[:, :kept] = u[:, :kept] * root
    return a, b


def decompose_adapters(model: nn.Module) -> dict[str, DecomposedLayer]:
    """Decomposes the updates of all layers, without forming any of them.

    Args:
        model: With plain LoRA or DoRA adapters (of DoRA the low-rank part of the direction), not sharded.

    Returns:
        By the layer's name in the pretrained model.
    """
    found = {}
    for name, layer in adapted_layers(model).items():
        pairs = expert_factors(layer, *adapter_factors(layer))
        scaling = float(layer.scaling[ADAPTER])
        experts = []
        for a, b in pairs:
            u, s, vh = decompose_factors(a, b)
            experts.append((u, scaling * s, vh))
        parameters = len(pairs) * (pairs[0][0].shape[1] + pairs[0][1].shape[0])
        found[name] = DecomposedLayer(tuple(experts), parameters)
    return found


@torch.no_grad()
def set_adapter_ranks(
    model: nn.Module,
    decomposed: Mapping[str, DecomposedLayer],
    ranks: Mapping[str, int],
    stored: Mapping[str, int] | None = None,
) -> None:
    """Truncates every adapter; its scaling becomes 1.

    Args:
        model: What was decomposed; changed in place.
        decomposed: From `decompose_adapters`.
        ranks: The rank to keep, by layer.
        stored: The rank that factors are padded to with zeros, by layer; `None` for no padding.
    """
    for name, layer in adapted_layers(model).items():
        kept = (ranks if stored is None else stored)[name]
        for factor, new in zip(adapter_factors(layer), decomposed[name].factors(ranks[name], kept), strict=True):
            factor.data = new.to(factor)  # of another shape
        layer.scaling[ADAPTER], layer.r[ADAPTER], layer.lora_alpha[ADAPTER] = 1.0, kept, kept


def set_adapter_config(network: PeftModel, stored: Mapping[str, int]) -> None:
    """Writes ranks and scalings of 1 into the configuration that PEFT saves.

    Args:
        network: After `set_adapter_ranks`; its configuration is replaced.
        stored: The rank of each layer's factors; if all are the same, the configuration has no patterns.
    """
    config = copy.deepcopy(cast("LoraConfig", network.peft_config[ADAPTER]))
    sizes = list(stored.values())
    config.r = config.lora_alpha = max(set(sizes), key=sizes.count)
    config.rank_pattern = {name: rank for name, rank in stored.items() if rank != config.r}
    config.alpha_pattern = dict(config.rank_pattern)
    config.use_rslora = False
    config.init_lora_weights = True
    network.peft_config[ADAPTER] = config
