"""Finds the layers that get an adapter, from a preset such as `attention-qv` or from module names."""

import re
from collections.abc import Collection, Iterable

import torch
from torch import nn

from lora_lightning.compat.peft import is_taken_for_experts
from lora_lightning.compat.transformers import Conv1D
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.families import FAMILIES
from lora_lightning.lora.quantized import quantized_bits
from lora_lightning.lora.uncalled_layers import is_never_called

MOST_LISTED = 3
PRESETS = ("attention-qv", "attention", "attention-mlp", "all-linear")


def linear_layers(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, nn.Module]:
    """The layers that LoRA can adapt.

    Args:
        model: A transformers model, before adapters are attached; its tensors may be on the meta device.
        exclude: Dotted names of modules to leave out with everything inside, such as the head.

    Returns:
        Module by dotted name, in the model's order: every `nn.Linear` and every GPT-2 `Conv1D`, apart from subclasses
        that compute something else, such as Llama 4's router.
    """
    prefixes = tuple(exclude)
    return {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and not any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    }


@torch.no_grad()
def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer in what it returns too, since an adapter adds its own output to that.

    Args:
        module: Of a transformers model; its tensors may be on the meta device.

    Returns:
        False for a subclass of `nn.Linear` that returns several tensors, or one of another shape.
    """
    if not isinstance(module, nn.Linear):
        return isinstance(module, Conv1D)
    if type(module).forward is nn.Linear.forward or quantized_bits(module) is not None:
        return True
    try:
        found = module(module.weight.new_zeros(2, module.in_features))
    except (IndexError, RuntimeError, TypeError, ValueError):  # it takes other inputs
        return False
    return isinstance(found, torch.Tensor) and found.shape == (2, module.out_features)


def weights_outside_linear_layers(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, int]:
    """The weights that no adapter of a linear layer reaches, such as the experts of a mixture, which are 3-D tensors.

    Args:
        model: A transformers model, before adapters are attached; its tensors may be on the meta device.
        exclude: Dotted names of modules to leave out with everything inside, such as the head.

    Returns:
        Number of elements by parameter name: every parameter of at least two dimensions, but those of linear layers and
        embeddings.
    """
    prefixes = tuple(f"{prefix}." for prefix in exclude)
    reached = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or is_linear(module)
        for parameter in module.parameters(recurse=False)
    }
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in reached and not name.startswith(prefixes)
    }


def summarize_names(names: Iterable[str]) -> str:
    """Names of modules or parameters for a message, those that differ by the layer's number once.

    Args:
        names: Dotted.

    Returns:
        The first three, with `*` for numbers, and how many more there are.
    """
    found = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
    more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return ", ".join(found[:MOST_LISTED]) + more


def layer_features(layer: nn.Module) -> tuple[int, int]:
    """The sides of a layer's weight; a quantized weight is packed and has another shape.

    Args:
        layer: Of `linear_layers`.

    Returns:
        (in_features, out_features).
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)  # type: ignore[arg-type]  # of a Conv1D


def resolve_target_modules(model: nn.Module, target_modules: str | list[str], exclude: Collection[str]) -> list[str]:
    """Names every layer that gets an adapter.

    Args:
        model: A transformers model with a `config.model_type`, before adapters are attached.
        target_modules: A preset, or module names as PEFT takes them (the end of a dotted name is enough).
        exclude: Dotted names of modules that train in full and therefore get no adapter.

    Returns:
        Full dotted names, in the model's order, at least one. Presets leave out the layers that PEFT would not adapt
        (`layers_not_adapted`).

    Raises:
        ConfigurationError: If a name matches no layer, or one that takes no adapter, or a preset does not know the
            architecture.
    """
    layers = list(linear_layers(model, exclude))
    refused = layers_not_adapted(model, layers)
    if target_modules == "all-linear":
        layers = [name for name in layers if name not in refused]
    if not layers:
        others = weights_outside_linear_layers(model, exclude)
        kinds = sorted({type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in others})
        found = f" (its other weights are in modules of type {', '.join(kinds)})" if others else ""
        msg = (
            f"model.lora.target_modules is {target_modules!r}, but apart from {', '.join(exclude)}, which train in "
            f"full, the model has no linear layer{found}; shorten modules_to_save, or write `lora: null`."
        )
        raise ConfigurationError(msg)
    if target_modules == "all-linear":
        return layers
    if isinstance(target_modules, str) and target_modules in PRESETS:
        layers = [name for name in layers if name not in refused]
        wanted: tuple[str, ...] = _preset_suffixes(_architecture(model), target_modules, _short_names(layers))
    elif isinstance(target_modules, str):
        raise ConfigurationError(_unknown(target_modules, layers))
    else:
        wanted = tuple(target_modules)
    chosen: set[str] = set()
    for suffix in wanted:
        matches = {name for name in layers if ends_with(name, suffix)}
        if not matches and not isinstance(target_modules, str):
            raise ConfigurationError(_unknown(suffix, layers))
        chosen |= matches
    if not chosen:
        msg = (
            f"model.lora.target_modules is {target_modules!r}, but this model has no layer whose name ends in "
            f"{', '.join(wanted)}; its layers end in {', '.join(_short_names(layers))}."
        )
        raise ConfigurationError(msg)
    if names := [name for name in layers if name in chosen and name in refused]:
        msg = (
            f"model.lora.target_modules names {names[0]}, but {refused[names[0]]}; leave "
            f"{', '.join(_short_names(names))} out, or use all-linear, which does."
        )
        raise ConfigurationError(msg)
    return [name for name in layers if name in chosen]


def layers_not_adapted(model: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """The linear layers that PEFT would not adapt, or would take for others.

    Args:
        model: A transformers model, before adapters are attached.
        layers: Dotted names of its linear layers.

    Returns:
        Why, as a clause that may name a remedy, by the layer's name.
    """
    taken: dict[str, bool] = {}
    found = {}
    for name in layers:
        last = name.rpartition(".")[2]
        if is_never_called(model, name):
            found[name] = "the model computes with its weight without calling it: an adapter would have no effect"
            continue
        if last not in taken:
            taken[last] = is_taken_for_experts(model, last)
        if taken[last]:
            found[name] = (
                f"PEFT takes {last} for the former name of this architecture's experts; name its weight in "
                "model.lora.target_parameters instead"
            )
    return found


def _architecture(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def _preset_suffixes(model_type: str, preset: str, layers: list[str]) -> tuple[str, ...]:
    if model_type not in FAMILIES or not FAMILIES[model_type].query_value:
        msg = (
            f"model.lora.target_modules is {preset!r}, but that preset does not know the architecture "
            f"{model_type!r}, whose linear layers end in {', '.join(layers)}; use all-linear, or list some of these."
        )
        raise ConfigurationError(msg)
    family = FAMILIES[model_type]
    parts = {
        "attention-qv": family.query_value,
        "attention": family.query_value + family.attention_rest,
        "attention-mlp": family.query_value + family.attention_rest + family.mlp,
    }
    return parts[preset]


def ends_with(name: str, suffix: str) -> bool:
    """Compares full parts of names: `output.dense` ends `a.output.dense`, not `a.my_output.dense`.

    Args:
        name: Dotted.
        suffix: Dotted; `*` stands for any one part.

    Returns:
        Whether the name ends in it, or is the same.
    """
    pattern = re.escape(suffix).replace(r"\*", r"[^.]+")
    return re.search(rf"(^|\.){pattern}$", name) is not None


def _short_names(layers: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in layers})


def _unknown(name: str, layers: Iterable[str]) -> str:
    choices = [*PRESETS, *_short_names(layers)]
    return f"model.lora.target_modules: the model has no linear layer {name!r}; {suggest_names(name, choices)}"
