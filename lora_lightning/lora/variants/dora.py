"""DoRA: the magnitude of each row of the weight trains beside its direction.

Source: Liu et al. 2024 (arXiv 2402.09353). The layer is PEFT's.
"""

from typing import cast

from torch import Tensor

from lora_lightning.compat.peft import DoraLinearVariant, LoraLayer
from lora_lightning.lora.delta import full_tensor
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.variants.variant import Variant


class Dora(Variant):
    """DoRA's part in a run: a base that it can measure, and how it is merged."""

    option = "model.lora.use_dora"
    refused_bits = (8,)
    why_not_quantized = "PEFT loses the scales of an 8-bit weight when it measures its rows"

    @classmethod
    def has_made(cls, layer: LoraLayer) -> bool:
        """Whether it is a linear layer with magnitudes."""
        return type(layer.lora_variant.get(ADAPTER)) is DoraLinearVariant

    @classmethod
    def merged_weight(cls, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
        """The rows of W + dW rescaled to the trained magnitudes: m (W + dW) / ||W + dW||.

        Source: Liu et al. 2024, equation 5; its columns are the rows of torch's weights.
        """
        merged = super().merged_weight(module, layer, weight)
        magnitude = full_tensor(cast("Tensor", layer.lora_magnitude_vector[ADAPTER].weight)).float()
        merged *= (magnitude / merged.norm(dim=1))[:, None]
        return merged
