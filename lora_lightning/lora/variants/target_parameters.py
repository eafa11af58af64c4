"""Adapters on parameters that are no linear layer's weight, such as those that hold all experts of a layer.

The layers are PEFT's: a forward pass computes with W + dW in place of W.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lora_lightning.compat.peft import LoraLayer, ParamWrapper
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import layer_deltas
from lora_lightning.lora.variants.variant import Variant

INITIALIZATIONS = (True, "gaussian")  # PEFT computes all others from the weight of a linear layer


class TargetParameters(Variant):
    """PEFT's `target_parameters`."""

    option = "model.lora.target_parameters"
    why_not_sharded = "PEFT adds each update to the full parameter"
    excludes: ClassVar[Mapping[str, str]] = {
        "model.lora.use_dora": "PEFT has no DoRA of parameters; set use_dora to false",
        "model.lora.adalora": "PEFT has no AdaLoRA of parameters; leave one of the two out",
        "model.optimization.lorafa": "LoRA-FA projects the gradients of single matrices; leave one of the two out",
    }

    def check_settings(self, lora: Any) -> None:
        """Refuses dropout and initializations that need a linear layer."""
        if lora.lora_dropout:
            msg = (
                f"model.lora.lora_dropout is {lora.lora_dropout}, but with target_parameters it must be 0, since PEFT "
                "changes the parameter itself, where no input can be dropped; write lora_dropout: 0."
            )
            raise ConfigurationError(msg)
        if lora.init_lora_weights not in INITIALIZATIONS:
            msg = (
                f"model.lora.init_lora_weights is {lora.init_lora_weights}, but with target_parameters it must be true "
                "or gaussian, because PEFT initializes parameters in no other way; leave one of the two out."
            )
            raise ConfigurationError(msg)

    @classmethod
    def has_made(cls, layer: LoraLayer) -> bool:
        """Whether it wraps a parameter."""
        return isinstance(layer, ParamWrapper)

    @classmethod
    def merged_weight(cls, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
        """W + dW of the parameter, of each expert by its own factors."""
        deltas = layer_deltas(module, layer)
        a, b = torch.stack([delta.A for delta in deltas]), torch.stack([delta.B for delta in deltas])
        merged = torch.baddbmm(weight.reshape(len(deltas), b.shape[1], a.shape[2]), b, a, alpha=deltas[0].scaling)
        return merged.reshape(weight.shape)
