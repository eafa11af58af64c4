"""The short, YAML-visible settings of an adapter and of what it sits on, in PEFT's and bitsandbytes' own words."""

from dataclasses import dataclass
from typing import Literal

from lora_lightning.errors import ConfigurationError

LARGEST_FLOAT32 = 3.4e38


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
        init_lora_weights: `default` starts at dW = 0; `loftq` at the best rank-r approximation of what 4-bit
            quantisation took away (Li et al. 2023, arXiv 2310.08659).
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    target_modules: str | list[str] = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: Literal["default", "loftq"] = "default"

    def __post_init__(self) -> None:
        """Rejects values that no layer could use.

        Raises:
            ConfigurationError: If a value is out of its range.
        """
        if self.r < 1:
            msg = f"model.lora.r is {self.r}, but a rank is at least 1; for full fine-tuning write `lora: null`."
            raise ConfigurationError(msg)
        if not 0 < self.lora_alpha < LARGEST_FLOAT32:
            msg = f"model.lora.lora_alpha is {self.lora_alpha}, but it must be above 0; 2 * r is a common choice."
            raise ConfigurationError(msg)
        if not 0 <= self.lora_dropout < 1:
            msg = f"model.lora.lora_dropout is {self.lora_dropout}, but a probability in [0, 1) is needed."
            raise ConfigurationError(msg)
        if not self.target_modules:
            msg = "model.lora.target_modules is empty; name a preset such as all-linear, or write `lora: null`."
            raise ConfigurationError(msg)


@dataclass
class QuantizationSettings:
    """Frozen base weights in 4 or 8 bits, by bitsandbytes (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

    The head, whatever the pretrained checkpoint lacked and `modules_to_save` are never quantised, nor are embeddings.

    Args:
        bits: 4; or 8, LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), which rounds the layers' inputs too.
        type: Of 4 bits: `nf4`, for weights that are normally distributed, as trained ones nearly are; or `fp4`.
        double_quantization: Quantises the scales of 4-bit weights as well: 0.37 bits a parameter less, for one more
            rounding. Off as in bitsandbytes: it pays where a model would not fit otherwise (3 GB of 65 billion
            parameters), not on a small one.
        compute_dtype: What 4-bit weights are multiplied in. `auto` takes that of a 16-bit `trainer.precision`; else
            bfloat16 where the device is fast at it, float16 on other GPUs and float32 on other CPUs.
        skip_modules: More modules that stay as they are, by name or the end of it, for example `[dense]`.
    """

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = False
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    skip_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Rejects what only 4-bit weights have.

        Raises:
            ConfigurationError: If it is set for 8 bits.
        """
        if self.bits == 4:  # noqa: PLR2004
            return
        defaults = {"type": "nf4", "double_quantization": False, "compute_dtype": "auto"}
        for name, default in defaults.items():
            if (value := getattr(self, name)) != default:
                msg = (
                    f"model.quantization.{name} is {value}, but only 4-bit weights have that, and bits is {self.bits}; "
                    "leave it out, or set bits to 4."
                )
                raise ConfigurationError(msg)
