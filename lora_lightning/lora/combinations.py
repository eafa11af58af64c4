"""Which variants do not go together: one table, one sentence each.

Each pair was tried with PEFT 0.21.2: it fails, ignores one of the two without a word, or computes something else.
"""

from typing import Any

from lora_lightning.errors import ConfigurationError

# Left and right are names of `active_variants`; the sentence says why, and what to do.
REFUSED: dict[tuple[str, str], str] = {
    ("adalora", "use_dora"): "AdaLoRA has no magnitudes; choose one of the two",
    ("adalora", "use_rslora"): "AdaLoRA scales by its own count of ranks; leave use_rslora out",
    ("adalora", "init_lora_weights"): "AdaLoRA has an initialisation of its own; leave init_lora_weights out",
    ("adalora", "rank_pattern"): "AdaLoRA chooses the ranks itself; leave rank_pattern out",
    ("adalora", "alpha_pattern"): "AdaLoRA has one lora_alpha for all; leave alpha_pattern out",
    ("adalora", "r"): "AdaLoRA takes its ranks from adalora.init_r and adalora.target_r; leave r at 8",
    ("adalora", "lorafa"): "AdaLoRA ranks directions by the gradients of A, which LoRA-FA freezes; choose one",
    ("loftq", "use_dora"): "DoRA's magnitudes would be those of the base without what LoftQ adds to it; choose one",
    ("eva", "trainable_token_indices"): "PEFT takes the embeddings for one of EVA's layers; choose one of the two",
    ("lorafa", "loraplus_lr_ratio"): "LoRA-FA trains no A that B's rate could be a multiple of; choose one",
}
# Settings whose default means that they are off, and AdaLoRA's count of ranks.
DEFAULTS: dict[str, Any] = {"use_dora": False, "use_rslora": False, "init_lora_weights": True, "r": 8}
OPTIONAL = ("adalora", "rank_pattern", "alpha_pattern", "trainable_token_indices")

# By the value of an option, and for which numbers of bits.
ON_QUANTIZED_BASES: dict[tuple[str, Any], tuple[tuple[int, ...], str]] = {
    ("init_lora_weights", "pissa"): ((4, 8), "PiSSA takes directions out of the base, which would be rounded again"),
    ("init_lora_weights", "olora"): ((4, 8), "OLoRA takes directions out of the base, which would be rounded again"),
    ("init_lora_weights", "orthogonal"): ((4, 8), "PEFT makes such adapters in the dtype of the packed weight"),
    ("use_dora", True): ((8,), "PEFT loses the scales of an 8-bit weight when it measures its rows"),
}

# Where each process has but a slice of every matrix (FSDP2).
ON_SHARDED_BASES = {
    "adalora": "AdaLoRA ranks the directions of whole matrices",
    "eva": "EVA runs the model before it is sharded",
    "init_lora_weights": "PiSSA and OLoRA take their start out of whole base weights again whenever a checkpoint loads",
    "lorafa": "LoRA-FA projects with whole matrices",
    "trainable_token_indices": "PEFT puts the tokens' rows into whole embeddings",
}


def active_variants(settings: Any) -> set[str]:
    """The variants that adapter settings ask for.

    Args:
        settings: `LoraSettings`.

    Returns:
        Names of its fields, and `eva` or `loftq`.
    """
    changed = {name for name, default in DEFAULTS.items() if getattr(settings, name) != default}
    start = {"eva", "loftq"} & {settings.init_lora_weights}
    return changed | start | {name for name in OPTIONAL if getattr(settings, name) is not None}


def check_pairs(settings: Any, others: tuple[str, ...] = ()) -> None:
    """Refuses variants that do not go together.

    Args:
        settings: `LoraSettings`.
        others: Variants of the optimizer: `lorafa`, `loraplus_lr_ratio`.

    Raises:
        ConfigurationError: If two exclude each other; names both and says why.
    """
    active = active_variants(settings) | set(others)
    for (left, right), why in REFUSED.items():
        if left in active and right in active:
            msg = f"{_full(left)} and {_full(right)} do not go together: {why}."
            raise ConfigurationError(msg)


def check_lora_and_quantization(lora: Any, quantization: Any) -> None:
    """Refuses settings of adapter and base that do not go together.

    Args:
        lora: `LoraSettings`, or `None`.
        quantization: `QuantizationSettings` of the base, or `None`.

    Raises:
        ConfigurationError: If quantised weights would have to train, LoftQ has no quantisation error to start from, or
            a variant cannot stand on such a base.
    """
    if lora is None and quantization is not None:
        msg = (
            "model.quantization is set, but model.lora is null, and quantised weights cannot train; give model.lora "
            "its settings, or write `quantization: null`."
        )
        raise ConfigurationError(msg)
    if lora is not None and lora.init_lora_weights == "loftq" and (quantization is None or quantization.bits != 4):  # noqa: PLR2004
        found = "null" if quantization is None else f"in {quantization.bits} bits"
        msg = (
            f"model.lora.init_lora_weights is loftq, but model.quantization is {found}, and LoftQ starts from what 4 "
            "bits take away; write `quantization: {bits: 4}`, or set init_lora_weights to true."
        )
        raise ConfigurationError(msg)
    if lora is not None and quantization is not None:
        check_quantized_base(lora, quantization.bits)


def check_quantized_base(settings: Any, bits: int) -> None:
    """Refuses what cannot stand on a quantised base, before it loads.

    Args:
        settings: `LoraSettings`.
        bits: 4 or 8.

    Raises:
        ConfigurationError: If a variant fails on such weights, or loses what it started with.
    """
    for (option, value), (refused_bits, why) in ON_QUANTIZED_BASES.items():
        asked = getattr(settings, option)
        # pissa_niter_4 is PiSSA too.
        if bits in refused_bits and (asked == value or str(asked).startswith(f"{value}_")):
            msg = (
                f"model.lora.{option} is {str(asked).lower()}, but the base is quantised to {bits} bits: {why}; leave "
                f"{option} out, or train on a base that is not quantised."
            )
            raise ConfigurationError(msg)


def check_sharded(settings: Any, lorafa: bool) -> None:
    """Refuses a variant that needs whole matrices, before the base is loaded and sharded.

    Args:
        settings: `LoraSettings`.
        lorafa: Whether the optimizer is LoRA-FA's.

    Raises:
        ConfigurationError: If one is asked for.
    """
    active = active_variants(settings) | ({"lorafa"} if lorafa else set())
    if not settings.changes_base:
        active -= {"init_lora_weights"}
    for name, why in ON_SHARDED_BASES.items():
        if name in active:
            msg = (
                f"{_full(name)} does not work with a strategy that shards the model: {why}; set trainer.strategy to "
                "ddp, or leave the variant out."
            )
            raise ConfigurationError(msg)


def _full(name: str) -> str:
    if name in {"eva", "loftq"}:
        return f"model.lora.init_lora_weights {name}"
    return f"model.{'optimization' if name.startswith('lora') else 'lora'}.{name}"
