"""The short, YAML-visible settings of an adapter, in PEFT's own words."""

from dataclasses import dataclass
from typing import Literal

from lora_lightning.errors import ConfigurationError


@dataclass
class LoraSettings:
    """Low-rank adaptation: y = W0 x + (lora_alpha / r) B A x (Hu et al. 2021, arXiv 2106.09685).

    Args:
        r: Rank of the update, at least 1.
        lora_alpha: Scaling numerator; the update is scaled by `lora_alpha / r`
            (`lora_alpha / sqrt(r)` with `use_rslora`).
        lora_dropout: Probability of dropping an input element of the adapter, in [0, 1).
        target_modules: A preset (`attention-qv`, `attention`, `attention-mlp`, `all-linear`), which works on
            every supported architecture and never touches the head; or a list of module names as PEFT takes
            it, for example `[query, value]`.
        bias: Which biases train as well: `none`, `all` or `lora_only`.
        use_rslora: Rank-stabilised scaling (Kalajdzievski 2023, arXiv 2312.03732).
        modules_to_save: Modules that train in full beside the adapters, for example `[pooler]`. The head, and
            whatever else the pretrained checkpoint lacked, is always among them.
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    target_modules: str | list[str] = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        """Rejects values that no layer could use.

        Raises:
            ConfigurationError: If a value is out of its range.
        """
        if self.r < 1:
            msg = f"model.lora.r is {self.r}, but a rank is at least 1; for full fine-tuning write `lora: null`."
            raise ConfigurationError(msg)
        if self.lora_alpha <= 0:
            msg = f"model.lora.lora_alpha is {self.lora_alpha}, but it must be above 0; 2 * r is a common choice."
            raise ConfigurationError(msg)
        if not 0 <= self.lora_dropout < 1:
            msg = f"model.lora.lora_dropout is {self.lora_dropout}, but a probability in [0, 1) is needed."
            raise ConfigurationError(msg)
        if not self.target_modules:
            msg = "model.lora.target_modules is empty; name a preset such as all-linear, or write `lora: null`."
            raise ConfigurationError(msg)
