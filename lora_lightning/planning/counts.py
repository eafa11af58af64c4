"""Counts parameters and bytes of a network without values: the adapter's file, and other ranks."""

from collections.abc import Iterable
from typing import Any, cast

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lightning.analysis.parameter_counts import ParameterCounts, count_by_kind
from lora_lightning.compat.peft import AdaLoraLayer, LoraLayer, first_matching_pattern
from lora_lightning.compat.transformers import tied_weights
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, split_layer_number
from lora_lightning.lora.parameter_names import ADAPTER, adapted_module_name, is_adapter_parameter
from lora_lightning.lora.plain_lora import as_plain_lora
from lora_lightning.planning.results import ModuleKind, RankRow

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


def count_modules(network: nn.Module) -> list[ModuleKind]:
    """Counts parameters by kind of module.

    Args:
        network: With or without adapters and values.

    Returns:
        Kinds with at least one trainable parameter, in the model's order.
    """
    places: dict[str, set[str]] = {}
    for name, _ in network.named_parameters():
        module = adapted_module_name(name)
        places.setdefault(split_layer_number(module)[1], set()).add(module)
    ranks: dict[str, list[int]] = {}
    for name, layer in adapted_layers(network).items():
        module = name if split_layer_number(name)[1] in places else name.rpartition(".")[0]  # of a parameter
        ranks.setdefault(split_layer_number(module)[1], []).append(int(layer.r[ADAPTER]))
    return [
        ModuleKind(
            kind,
            modules=len(places[kind]),
            adapted=len(ranks.get(kind, [])),
            ranks=sorted(set(ranks.get(kind, []))),
            trainable=counts.trained,
            total=counts.total,
        )
        for kind, counts in count_by_kind(network).items()
        if counts.trained
    ]


def exported_bytes(network: nn.Module, settings: LoraSettings | None, bytes_per_number: int) -> int:
    """The size of the tensors in the safetensors file that `fit` exports.

    Args:
        network: Without values.
        settings: The adapter's; `None` for a model that trains in full.
        bytes_per_number: Of the precision in which it trains; the network without values is float32.

    Returns:
        Bytes, without the file's header. AdaLoRA's final ranks are taken to be `target_r` everywhere: their sum is
        known before training, their places are not.
    """
    if not isinstance(network, PeftModel):
        tied = tied_weights(network) if isinstance(network, PreTrainedModel) else {}
        kept = [tensor for name, tensor in network.state_dict().items() if name not in tied]
        return _bytes(kept, bytes_per_number)
    if settings is None or settings.adalora is None:
        with as_plain_lora(network) as plain:
            state = get_peft_model_state_dict(network, state_dict=plain, save_embedding_layers=False)
            return _bytes(state.values(), bytes_per_number)
    state = get_peft_model_state_dict(network, save_embedding_layers=False)
    others = _bytes((tensor for name, tensor in state.items() if not is_adapter_parameter(name)), bytes_per_number)
    factors = [factor for layer in adapted_layers(network).values() for factor in factors_to_export(layer)]
    return others + _bytes(factors, bytes_per_number) * settings.adalora.target_r // settings.adalora.init_r


def _bytes(tensors: Iterable[Tensor], bytes_per_number: int) -> int:
    return sum(
        tensor.numel() * (bytes_per_number if tensor.is_floating_point() else tensor.element_size())
        for tensor in tensors
    )


def factors_to_export(layer: LoraLayer) -> list[nn.Parameter]:
    """A and B of an adapter, as parameters."""
    found: list[Any] = [layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]]  # of AdaLoRA parameters, else linear layers
    return [getattr(each, "weight", each) for each in found]


def matrices_of(layer: LoraLayer) -> list[nn.Parameter]:
    """The parameters of an adapter that grow with its rank: A, B, and E of AdaLoRA."""
    more = [layer.lora_E[ADAPTER]] if isinstance(layer, AdaLoraLayer) else []
    return [*factors_to_export(layer), *more]


def rank_table(network: PeftModel, settings: LoraSettings, exported: int, bytes_per_number: int) -> list[RankRow]:
    """What other ranks would take: parameters and bytes are linear in r.

    Args:
        network: With its adapters, without values. Modules in `rank_pattern` keep their ranks.
        settings: The adapter's.
        exported: From `exported_bytes`.
        bytes_per_number: As there.

    Returns:
        A row for each of `RANKS` up to the longest side of an adapted layer, above which `fit` refuses r; of PiSSA and
        OLoRA up to the shortest.
    """
    counts, layers = sum(count_by_kind(network).values(), start=ParameterCounts()), adapted_layers(network)
    pattern, own = list(settings.rank_pattern or {}), default_rank(settings)
    varied = {name: layer for name, layer in layers.items() if first_matching_pattern(pattern, name) not in pattern}
    growing = [each for layer in varied.values() for each in matrices_of(layer)]
    trained = sum(each.numel() // own for each in growing if each.requires_grad)
    added = sum(each.numel() // own for each in growing)
    saved = sum(each.numel() // own for layer in varied.values() for each in factors_to_export(layer))
    saved *= bytes_per_number
    # PiSSA and OLoRA are exported with rank 2 r, AdaLoRA with `target_r`.
    saved *= 0 if settings.adalora is not None else 2 if settings.changes_base else 1
    sides = {name: _sides(layer) for name, layer in layers.items()}
    allowed = [(min if settings.changes_base else max)(sides[name]) for name in varied]
    largest = (min if settings.changes_base else max)(allowed, default=0)
    return [
        RankRow(
            r,
            counts.trained + (r - own) * trained,
            reduction=counts.pretrained / (counts.trained + (r - own) * trained),
            share=(counts.trained + (r - own) * trained) / (counts.total + (r - own) * added),
            adapter_bytes=exported + (r - own) * saved,
            full_rank_modules=sum(
                (r if name in varied else int(layer.r[ADAPTER])) >= min(sides[name]) for name, layer in layers.items()
            ),
        )
        for r in RANKS
        if r <= largest
    ]


def default_rank(settings: LoraSettings) -> int:
    """The rank of the modules that `rank_pattern` does not name; of AdaLoRA the one that it starts with."""
    return settings.adalora.init_r if settings.adalora is not None else settings.r


def _sides(layer: LoraLayer) -> tuple[int, int]:
    """Inputs and outputs of the layer, or of each expert, under an adapter."""
    return cast("tuple[int, int]", (layer.in_features, layer.out_features))
