"""What is handed over is plain LoRA on the pretrained base, whatever variant trained it (DoRA keeps its magnitudes).

PiSSA and OLoRA learnt s B A on W - s B0 A0, which is s [B, -B0] [A; A0] on W, of rank 2 r. AdaLoRA learnt
s B (E A), of which only the rows with E != 0 count. Of EVA's targets PEFT keeps the ends of names, which would find the
layers again that lost their adapter. So plain PEFT loads every adapter, and so does whatever serves LoRA, without the
part of the base, the data or the schedule that training needed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from peft import LoraConfig, PeftModel
from torch import Tensor

from lora_lightning.compat.peft import AdaLoraLayer, LoraLayer
from lora_lightning.lora.delta import ADAPTER, adapted_layers, layer_delta
from lora_lightning.lora.variants.initial_factors import initial_factors

SHARED = ("task_type", "base_model_name_or_path", "bias", "modules_to_save", "fan_in_fan_out", "lora_dropout")


def needs_conversion(network: PeftModel) -> bool:
    """Whether PEFT's own format would not be plain LoRA on the pretrained base."""
    layers = adapted_layers(network).values()
    if getattr(network.peft_config[ADAPTER], "init_lora_weights", None) == "eva":
        return True
    return any(isinstance(layer, AdaLoraLayer) or initial_factors(layer) is not None for layer in layers)


def plain_factors(module: str, layer: LoraLayer) -> tuple[Tensor, Tensor, float]:
    """One layer's update as plain LoRA.

    Args:
        module: The layer's name.
        layer: Of `adapted_layers`.

    Returns:
        A, (r, in_features), and B, (out_features, r), float32, on the layer's device, and the scaling s, so that
        dW = s B A. Of AdaLoRA only the rows in use; one of zeros, if none is.
    """
    delta = layer_delta(module, layer)
    if not isinstance(layer, AdaLoraLayer):
        return delta.A, delta.B, delta.scaling
    kept = layer.lora_E[ADAPTER].detach().flatten() != 0
    if not kept.any():
        kept[0] = True
    return delta.A[kept], delta.B[:, kept], delta.scaling


@contextmanager
def as_plain_lora(network: PeftModel) -> Iterator[dict[str, Tensor] | None]:
    """Lets PEFT save plain LoRA: while this lasts its configuration is plain LoRA's.

    Args:
        network: Any adapted model; nothing of it changes.

    Yields:
        The state for `save_pretrained`; `None` where PEFT's own is plain LoRA already.
    """
    if not needs_conversion(network):
        yield None
        return
    state = network.state_dict()
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    old = cast("LoraConfig", network.peft_config[ADAPTER])
    for name, layer in adapted_layers(network).items():
        a, b, scaling = plain_factors(name, layer)
        ranks[name] = len(a)
        alphas[name] = scaling * (len(a) ** 0.5 if old.use_rslora else len(a))
        place = f"base_model.model.{name}"
        for factor in ("lora_A", "lora_B", "lora_E"):
            state.pop(f"{place}.{factor}.{ADAPTER}", None)  # AdaLoRA's names
        state[f"{place}.lora_A.{ADAPTER}.weight"], state[f"{place}.lora_B.{ADAPTER}.weight"] = a, b.contiguous()
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
