"""Variants of LoRA, one class each, and which of them a run has.

Nothing here knows Lightning; what every adapter has in common is in `lora`.
"""

from typing import Any

from peft import PeftModel

from lora_lightning.compat.peft import LoraLayer
from lora_lightning.lora.variants.adalora import AdaLora
from lora_lightning.lora.variants.dora import Dora
from lora_lightning.lora.variants.eva import Eva
from lora_lightning.lora.variants.loftq import LoftQ
from lora_lightning.lora.variants.lora_fa import LoraFa
from lora_lightning.lora.variants.lora_plus import LoraPlus
from lora_lightning.lora.variants.orthogonal import Orthogonal
from lora_lightning.lora.variants.principal_directions import Olora, Pissa
from lora_lightning.lora.variants.target_parameters import TargetParameters
from lora_lightning.lora.variants.trainable_tokens import TrainableTokens
from lora_lightning.lora.variants.variant import Initialization, Variant

# In the order in which their hooks are called and their initializations are listed.
VARIANTS: tuple[type[Variant], ...] = (
    AdaLora,
    Dora,
    Orthogonal,
    Pissa,
    Olora,
    Eva,
    LoftQ,
    LoraFa,
    LoraPlus,
    TrainableTokens,
    TargetParameters,
)


def chosen_variants(lora: Any, optimization: Any = None) -> list[Variant]:
    """The variants that settings ask for.

    Args:
        lora: `LoraSettings`, or `None`.
        optimization: `OptimizationSettings`, or `None` while only the adapter's settings are known.

    Returns:
        In the order of `VARIANTS`; empty for plain LoRA.
    """
    found = (variant.from_settings(lora, optimization) for variant in VARIANTS)
    return [variant for variant in found if variant is not None]


def variant_of_layer(layer: LoraLayer) -> type[Variant]:
    """The variant by which a layer's adapter is exported and merged; `Variant` itself for plain LoRA."""
    return next((variant for variant in VARIANTS if variant.has_made(layer)), Variant)


def needs_conversion(network: PeftModel) -> bool:
    """Whether PEFT's own format of the network's adapters would not be plain LoRA on the pretrained base."""
    return any(variant.needs_conversion(network) for variant in VARIANTS)


def initialization_names() -> list[str]:
    """The values of `init_lora_weights` beside `true`, as messages list them."""
    own = (variant.initializations for variant in VARIANTS if issubclass(variant, Initialization))
    return ["gaussian", *(name for names in own for name in names)]


def is_initialization(value: str) -> bool:
    """Whether `init_lora_weights` may have a value; a variant may know more values than messages list."""
    found = (variant.is_chosen_by(value) for variant in VARIANTS if issubclass(variant, Initialization))
    return value == "gaussian" or any(found)
