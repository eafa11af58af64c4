"""Orthogonal initialization: A and B start as parts of one orthogonal matrix, with B A = 0."""

from typing import Any

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.variants.variant import Initialization


class Orthogonal(Initialization):
    """PEFT's `orthogonal`, which starts at dW = 0."""

    initializations = ("orthogonal",)
    refused_bits = (4, 8)
    why_not_quantized = "PEFT makes such adapters in the dtype of the packed weight"

    def check_settings(self, lora: Any) -> None:
        """Refuses an odd rank."""
        odd = [r for r in (lora.r, *(lora.rank_pattern or {}).values()) if r % 2]
        if odd:
            msg = f"model.lora.init_lora_weights is orthogonal, which needs even ranks, but r is {odd[0]}."
            raise ConfigurationError(msg)
