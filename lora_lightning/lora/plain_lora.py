"""Adapters are exported as plain LoRA on the pretrained base, whatever their variant (DoRA keeps its magnitudes).

PiSSA and OLoRA learnt s B A on W - s B0 A0, which is s [B, -B0] [A; A0] on W, of rank 2 r. AdaLoRA learnt
s B (E A), of which only the rows with E != 0 matter. For EVA's targets PEFT keeps the ends of their names, which also
match the layers that lost their adapter. As plain LoRA every adapter loads in plain PEFT, and in whatever serves LoRA,
without the part of the base, the data or the schedule that training needed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from peft import LoraConfig, PeftModel
from torch import Tensor

from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.initial_factors import initial_factor_names
from lora_lightning.lora.parameter_names import ADAPTER, adalora_weight_names, weight_name
from lora_lightning.lora.variants import needs_conversion, variant_of_layer

SHARED = (
    "task_type",
    "base_model_name_or_path",
    "bias",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_dropout",
    "ensure_weight_tying",
)


@contextmanager
def as_plain_lora(network: PeftModel) -> Iterator[dict[str, Tensor] | None]:
    """Lets PEFT save plain LoRA: inside this context the network's configuration is plain LoRA's.

    Args:
        network: Any adapted model; nothing of it changes.

    Yields:
        The state for `save_pretrained`; `None` if PEFT's own state is plain LoRA already.
    """
    if not needs_conversion(network):
        yield None
        return
    starts = initial_factor_names(network)  # which PEFT would save with the layer
    state = {name: tensor for name, tensor in network.state_dict().items() if name not in starts}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    old = cast("LoraConfig", network.peft_config[ADAPTER])
    for name, layer in adapted_layers(network).items():
        a, b, scaling = variant_of_layer(layer).exported_factors(name, layer)
        ranks[name] = len(a)
        alphas[name] = scaling * (len(a) ** 0.5 if old.use_rslora else len(a))
        for key in adalora_weight_names(name):
            state.pop(key, None)
        state[weight_name(name, "A")], state[weight_name(name, "B")] = a, b.contiguous()
    network.peft_config[ADAPTER] = _plain_config(old, ranks, alphas)
    try:
        yield state
    finally:
        network.peft_config[ADAPTER] = old


def _plain_config(old: LoraConfig, ranks: dict[str, int], alphas: dict[str, float]) -> LoraConfig:
    most = max(set(ranks.values()), key=list(ranks.values()).count)
    shared = {name: copy.copy(getattr(old, name)) for name in SHARED}
    alpha = max(set(alphas.values()), key=list(alphas.values()).count)
    return LoraConfig(
        r=most,
        lora_alpha=cast("int", alpha),  # PEFT annotates int and divides
        rank_pattern={name: rank for name, rank in ranks.items() if rank != most},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        target_modules=sorted(ranks),
        use_rslora=old.use_rslora,
        use_dora=old.use_dora,
        trainable_token_indices=old.trainable_token_indices,
        **shared,
    )
