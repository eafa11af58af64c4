"""The settings of an adapter and of its base in YAML, with the names that PEFT and bitsandbytes use."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.combinations import check_combinations
from lora_lightning.lora.variants import chosen_variants, initialization_names, is_initialization
from lora_lightning.lora.variants.adalora import AdaLoraSettings
from lora_lightning.lora.variants.eva import EvaSettings
from lora_lightning.lora.variants.variant import LARGEST_FLOAT32

# Empty ones would ask for something and get nothing.
OPTIONAL_LISTS = (
    "layers_to_transform",
    "trainable_token_indices",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "exclude_modules",
)


@dataclass
class LoraSettings:
    """Low-rank adaptation: y = W0 x + (lora_alpha / r) B A x (Hu et al. 2021, arXiv 2106.09685), and its variants.

    Args:
        r: Rank of the update, at least 1; AdaLoRA has ranks of its own. Changing it without `lora_alpha` changes the
            scaling.
        lora_alpha: Scaling numerator; the update is scaled by `lora_alpha / r`
            (`lora_alpha / sqrt(r)` with `use_rslora`). Double it with `r` to keep the scaling.
        lora_dropout: Probability of dropping an input element of the adapter, in [0, 1); on a CPU rounded to 1/256,
            if it is not below 1/512.
        target_modules: A preset (`attention-qv`, `attention`, `attention-mlp`, `all-linear`), which works for every
            supported architecture and never adapts the head; or a list of module names as PEFT takes it, for example
            `[query, value]`.
        target_parameters: Parameters of other modules that get an adapter too, each the end of a dotted name, such as
            those that hold all experts of a layer: `[mlp.experts.gate_up_proj, mlp.experts.down_proj]`. Each expert has
            an update of its own of rank `r`. Needs `lora_dropout: 0`. With `target_modules: []` nothing else does.
        exclude_modules: Modules that get no adapter although `target_modules` or `target_parameters` covers them, each
            the end of a dotted name, for example `[layers.0.mlp.down_proj]`.
        bias: Which biases are trainable: `none`, `all` or `lora_only`.
        use_rslora: Rank-stabilized scaling (Kalajdzievski 2023, arXiv 2312.03732).
        modules_to_save: Modules that are fully trained in addition to the adapters, for example `[pooler]`, or the
            embeddings of an encoder, `[word_embeddings]`. The head, and whatever else the pretrained checkpoint lacked,
            always trains in full.
        ensure_weight_tying: Train embeddings and the output layer that shares their weights as one if `modules_to_save`
            names either of them; without it, to name one of them is refused.
        use_dora: Train the magnitude of each row beside its direction (Liu et al. 2024, arXiv 2402.09353).
        init_lora_weights: `true` (B = 0), `gaussian` or `orthogonal`, which also start at dW = 0; `pissa`,
            `pissa_niter_4` (faster, randomized) or `olora`, which take the principal directions of W0 out of the base
            and train them (arXiv 2404.02948, 2406.01775); `eva`, which starts with the principal directions of the
            training data (arXiv 2410.07170); or `loftq`, which starts with the best rank-r approximation of the error
            of 4-bit quantization (Li et al. 2023, arXiv 2310.08659).
        eva_config: Settings of `eva`; `null` for PEFT's defaults.
        rank_pattern: Ranks that differ from `r`, by the end of a module's name or a regular expression, as in PEFT:
            `{query: 4, layer.0.attention.self.value: 16}`.
        alpha_pattern: Values that differ from `lora_alpha`, in the same way.
        layers_to_transform: Numbers of the layers that get adapters, from 0; `null` for all layers.
        layers_pattern: Name of the list that `layers_to_transform` refers to, such as `layer`, if module names contain
            several numbers; `null` for the first number.
        trainable_token_indices: Ids of the tokens whose embeddings are trainable; tied output weights follow them.
        adalora: AdaLoRA instead of LoRA.
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    target_modules: str | list[str] = "all-linear"
    target_parameters: list[str] | None = None
    exclude_modules: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    eva_config: EvaSettings | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    layers_to_transform: list[int] | None = None
    layers_pattern: str | None = None
    trainable_token_indices: list[int] | None = None
    adalora: AdaLoraSettings | None = None

    def __post_init__(self) -> None:
        """Rejects values that no layer can use, and options that cannot be combined.

        Raises:
            ConfigurationError: If a value is out of its range.
        """
        self.adalora = _as_object(AdaLoraSettings, self.adalora)
        self.eva_config = _as_object(EvaSettings, self.eva_config)
        if self.r < 1:
            msg = f"model.lora.r is {self.r}, but it must be at least 1; for full fine-tuning write `lora: null`."
            raise ConfigurationError(msg)
        if not 0 < self.lora_alpha < LARGEST_FLOAT32:
            msg = f"model.lora.lora_alpha is {self.lora_alpha}, but it must be above 0; 2 * r is a common choice."
            raise ConfigurationError(msg)
        if not 0 <= self.lora_dropout < 1:
            msg = f"model.lora.lora_dropout is {self.lora_dropout}, but it must be a probability in [0, 1)."
            raise ConfigurationError(msg)
        if not self.target_modules and not self.target_parameters:
            msg = "model.lora.target_modules is empty; name a preset such as all-linear, or write `lora: null`."
            raise ConfigurationError(msg)
        self._check_initialization()
        self._check_patterns()
        self._check_choices()
        check_combinations(self)

    def _check_initialization(self) -> None:
        wanted = self.init_lora_weights
        if wanted is False:
            msg = (
                "model.lora.init_lora_weights is false, which starts at a random update; write true (dW = 0), or one "
                f"of {', '.join(initialization_names())}."
            )
            raise ConfigurationError(msg)
        if isinstance(wanted, str) and not is_initialization(wanted):
            remedy = suggest_names(wanted, ("true", *initialization_names()))
            msg = f"model.lora.init_lora_weights is {wanted!r}, which is not an initialization; {remedy}"
            raise ConfigurationError(msg)
        if self.eva_config is not None and wanted != "eva":
            msg = "model.lora.eva_config is set, but init_lora_weights is not eva; set that, or leave eva_config out."
            raise ConfigurationError(msg)

    def _check_patterns(self) -> None:
        for name, least in (("rank_pattern", 1), ("alpha_pattern", 0)):
            for key, value in (getattr(self, name) or {}).items():
                if not least <= value < LARGEST_FLOAT32 or not value:
                    allowed = "at least 1" if least else "above 0"
                    msg = f"model.lora.{name}: {key} is {value}, but it must be {allowed}, and finite."
                    raise ConfigurationError(msg)
                try:
                    re.compile(key)
                except re.error as error:
                    msg = f"model.lora.{name}: {key!r} is not a regular expression ({error}); give the end of a name."
                    raise ConfigurationError(msg) from error

    def _check_choices(self) -> None:
        if self.layers_pattern is not None and self.layers_to_transform is None:
            msg = (
                f"model.lora.layers_pattern is {self.layers_pattern!r}, but layers_to_transform is not set; give the "
                "numbers of the layers, or leave the pattern out."
            )
            raise ConfigurationError(msg)
        for name in OPTIONAL_LISTS:
            if getattr(self, name) is not None and not getattr(self, name):
                msg = f"model.lora.{name} is empty; leave it out, or write null."
                raise ConfigurationError(msg)
        for token, times in Counter(self.trainable_token_indices or ()).most_common(1):
            if times > 1:
                msg = f"model.lora.trainable_token_indices has {token} {times} times; give each token once."
                raise ConfigurationError(msg)

    @property
    def changes_base(self) -> bool:
        """Whether the adapter starts with a part of the base, which is taken out of it."""
        return any(variant.changes_base for variant in chosen_variants(self))


@dataclass
class QuantizationSettings:
    """Frozen base weights in 4 or 8 bits, by bitsandbytes (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

    The head, whatever else the pretrained checkpoint lacked, `modules_to_save` and embeddings are never quantized.

    Args:
        bits: 4; or 8, LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), which rounds the layers' inputs too.
        type: Data type of 4-bit weights: `nf4`, for normally distributed weights, as trained weights nearly are; or
            `fp4`.
        double_quantization: Quantize the scales of 4-bit weights too, which saves 0.37 bits per parameter for one more
            rounding. Off by default, as in bitsandbytes: it is worth it for models that would not fit otherwise (3 GB
            for 65 billion parameters), not for small models.
        compute_dtype: Data type in which 4-bit weights are multiplied. `auto` takes that of a 16-bit
            `trainer.precision`; otherwise bfloat16 if the device is fast at it, float16 on other GPUs and float32 on
            other CPUs.
        skip_modules: Further modules that are not quantized, by name or the end of it, for example `[dense]`.
    """

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = False
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    skip_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Rejects options of 4-bit weights for 8 bits.

        Raises:
            ConfigurationError: If one is set.
        """
        if self.bits == 4:  # noqa: PLR2004
            return
        defaults = {"type": "nf4", "double_quantization": False, "compute_dtype": "auto"}
        for name, default in defaults.items():
            if (value := getattr(self, name)) != default:
                msg = (
                    f"model.quantization.{name} is {value}, but it applies to 4-bit weights only, and bits is "
                    f"{self.bits}; leave it out, or set bits to 4."
                )
                raise ConfigurationError(msg)


def _as_object(settings_class: Any, value: Any) -> Any:
    """The settings as an object; a checkpoint holds them as a mapping."""
    return settings_class(**value) if isinstance(value, Mapping) else value
