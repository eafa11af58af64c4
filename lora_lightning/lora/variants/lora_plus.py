"""LoRA+: B learns faster than A.

Source: Hayou et al. 2024 (arXiv 2402.12354).
"""

from torch import nn

from lora_lightning.lora.parameter_names import is_factor_b
from lora_lightning.lora.variants.variant import Variant


class LoraPlus(Variant):
    """LoRA+'s part in a run: a second learning rate."""

    option = "model.optimization.loraplus_lr_ratio"

    def learning_rate_factor(self, name: str, parameter: nn.Parameter) -> float:
        """The ratio for B and for vectors (biases, norms, magnitudes), as in PEFT's `create_loraplus_optimizer`."""
        return float(self.value) if parameter.ndim <= 1 or is_factor_b(name) else 1.0
