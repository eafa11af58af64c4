"""PiSSA and OLoRA: adapters that start with the principal directions of W, which are taken out of the base.

Source: Meng et al. 2024 (arXiv 2404.02948); Büyükakyüz 2024 (arXiv 2406.01775). The decompositions are PEFT's;
`lora.initial_factors` keeps account of what the base lacks.
"""

import re
from collections.abc import Mapping

from peft import PeftModel
from torch import Tensor, nn

from lora_lightning.compat.transformers import Conv1D
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.initial_factors import (
    follow_initial_factors,
    initial_factor_names,
    initial_factors,
    keep_initial_factors,
)
from lora_lightning.lora.target_modules import layer_features
from lora_lightning.lora.variants.variant import Initialization


class PrincipalDirections(Initialization):
    """A start with a part of the base: the layer computes (W - s B0 A0) x + s B A x, and learns s (B A - B0 A0)."""

    refused_bits = (4, 8)
    changes_base = True
    why_not_sharded = "PiSSA and OLoRA take their start out of full base weights again whenever a checkpoint is loaded"

    def check_layer(self, module: str, layer: nn.Module, rank: int) -> None:
        """Refuses a rank above the layer's own."""
        smaller = min(layer_features(layer))
        if rank > smaller:
            msg = (
                f"model.lora.init_lora_weights is {self.value}, but r = {rank} is above the smaller side of {module} "
                f"({smaller}), so it has no such directions; lower r, or use rank_pattern."
            )
            raise ConfigurationError(msg)

    def after_attaching(self, network: PeftModel) -> None:
        """Keeps A0 and B0 with each layer."""
        for layer in adapted_layers(network).values():
            keep_initial_factors(layer, *adapter_factors(layer))

    def saved_buffers(self, network: nn.Module) -> list[str]:
        """A0 and B0 of each layer."""
        return initial_factor_names(network)

    def before_loading(self, network: PeftModel, state: Mapping[str, Tensor]) -> None:
        """Takes the checkpoint's A0 and B0 out of the base instead of this process's own."""
        follow_initial_factors(network, state)

    @classmethod
    def needs_conversion(cls, network: PeftModel) -> bool:
        """Whether the base lacks what an adapter started with."""
        return any(initial_factors(layer) is not None for layer in adapted_layers(network).values())


class Pissa(PrincipalDirections):
    """PiSSA: the largest singular directions of W, by an SVD, or by a faster randomized one (`pissa_niter_4`)."""

    initializations = ("pissa", "pissa_niter_4")
    why_not_quantized = "PiSSA takes directions out of the base, which would be rounded again"

    @classmethod
    def is_chosen_by(cls, value: object) -> bool:
        """Whether it is `pissa`, or `pissa_niter_` with a number of iterations."""
        return isinstance(value, str) and re.fullmatch(r"pissa(_niter_[1-9]\d*)?", value) is not None


class Olora(PrincipalDirections):
    """OLoRA: the first directions of a QR decomposition of W."""

    initializations = ("olora",)
    why_not_quantized = "OLoRA takes directions out of the base, which would be rounded again"

    def check_layer(self, module: str, layer: nn.Module, rank: int) -> None:
        """Refuses a transposed layer, and a rank above the layer's own."""
        if isinstance(layer, Conv1D):
            msg = (
                f"model.lora.init_lora_weights is olora, which PEFT computes wrongly for the transposed weight of "
                f"{module}; choose pissa, or another initialization."
            )
            raise ConfigurationError(msg)
        super().check_layer(module, layer, rank)
