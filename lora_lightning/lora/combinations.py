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
    ("lorafa", "loraplus_lr_ratio"): "LoRA-FA trains no A that B's rate could be a multiple of; choose one",
}
# Settings whose default means that they are off, and AdaLoRA's count of ranks.
DEFAULTS: dict[str, Any] = {"use_dora": False, "use_rslora": False, "init_lora_weights": True, "r": 8}
OPTIONAL = ("adalora", "rank_pattern", "alpha_pattern")

ON_QUANTIZED_BASES: dict[str, str] = {
    "pissa": "PiSSA takes directions out of the base, and a quantised one would lose what is left",
    "olora": "OLoRA takes directions out of the base, and a quantised one would lose what is left",
}


def active_variants(settings: Any) -> set[str]:
    """The variants that adapter settings ask for.

    Args:
        settings: `LoraSettings`.

    Returns:
        Names of its fields.
    """
    changed = {name for name, default in DEFAULTS.items() if getattr(settings, name) != default}
    return changed | {name for name in OPTIONAL if getattr(settings, name) is not None}


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


def check_quantized_base(settings: Any, bits: int) -> None:
    """Refuses what cannot stand on a quantised base, before it loads.

    Args:
        settings: `LoraSettings`.
        bits: 4 or 8.

    Raises:
        ConfigurationError: If the initialisation changes the base.
    """
    wanted = str(settings.init_lora_weights).partition("_")[0]
    if wanted in ON_QUANTIZED_BASES:
        msg = (
            f"model.lora.init_lora_weights is {settings.init_lora_weights}, but the base is quantised to {bits} bits: "
            f"{ON_QUANTIZED_BASES[wanted]}; choose loftq or true."
        )
        raise ConfigurationError(msg)


def _full(name: str) -> str:
    return f"model.{'optimization' if name.startswith('lora') else 'lora'}.{name}"
