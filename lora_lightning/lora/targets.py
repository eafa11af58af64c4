"""Finds everything that gets an adapter, modules and parameters, and checks that the settings fit it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from lora_lightning.compat.peft import first_matching_pattern
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.target_modules import ends_with, layer_features, linear_layers, resolve_target_modules
from lora_lightning.lora.target_parameters import resolve_target_parameters
from lora_lightning.lora.target_patterns import check_patterns, restrict_to_layers
from lora_lightning.lora.variants import chosen_variants


@dataclass(frozen=True)
class Targets:
    """What gets an adapter, by full dotted name in the model's order; at least one of the two is not empty.

    Attributes:
        modules: Linear layers.
        parameters: Parameters of other modules, such as those that hold all experts of a layer.
    """

    modules: list[str]
    parameters: list[str]


def find_targets(model: PreTrainedModel, settings: LoraSettings, exclude: Collection[str]) -> Targets:
    """Names everything that gets an adapter, and checks that the settings fit it.

    Args:
        model: The model before adapters are attached; may be on the meta device.
        settings: The adapter's settings.
        exclude: Dotted names of modules that train in full, or are never adapted.

    Returns:
        Full dotted names.

    Raises:
        ConfigurationError: If a name, pattern, layer or token does not exist, or a rank is too high for a layer.
    """
    modules = resolve_target_modules(model, settings.target_modules, exclude) if settings.target_modules else []
    parameters = list(resolve_target_parameters(model, settings.target_parameters or (), exclude))
    modules_of = dict(zip(modules, modules, strict=True)) | {name: name.rpartition(".")[0] for name in parameters}
    names = leave_out(modules_of, settings.exclude_modules or ())
    names = restrict_to_layers(names, settings.layers_to_transform, settings.layers_pattern)
    targets = Targets([name for name in modules if name in names], [name for name in parameters if name in names])
    check_patterns(names, {"rank_pattern": settings.rank_pattern, "alpha_pattern": settings.alpha_pattern})
    if settings.trainable_token_indices:
        _check_tokens(model, settings.trainable_token_indices, exclude)
    _check_ranks(model, settings, targets)
    _check_variants(model, settings, targets)
    return targets


def leave_out(modules_of: Mapping[str, str], excluded: Collection[str]) -> list[str]:
    """Leaves out what is in the modules that `exclude_modules` names.

    Args:
        modules_of: By full dotted name of each target: its module, which is a linear layer itself.
        excluded: Names of modules, or the ends of dotted names, as in PEFT.

    Returns:
        The other targets, in their order; at least one.

    Raises:
        ConfigurationError: If an entry matches no target, or nothing is left.
    """
    for name in excluded:
        if not any(ends_with(module, name) for module in modules_of.values()):
            ends = {part for module in modules_of.values() for part in (module, module.rpartition(".")[2])}
            msg = (
                f"model.lora.exclude_modules: no module that would get an adapter is named {name!r}; "
                f"{suggest_names(name, ends)}"
            )
            raise ConfigurationError(msg)
    left = [name for name, module in modules_of.items() if not any(ends_with(module, end) for end in excluded)]
    if not left:
        msg = f"model.lora.exclude_modules is {list(excluded)}, which leaves no module to adapt; shorten it."
        raise ConfigurationError(msg)
    return left


def smaller_sides(model: nn.Module, targets: Targets) -> dict[str, int]:
    """The largest rank that the update of each target can have.

    Args:
        model: Before adapters are attached.
        targets: Of `find_targets`.

    Returns:
        The smaller of in_features and out_features, by the target's name.
    """
    return {name: min(sides) for name, sides in _sides(model, targets).items()}


def _sides(model: nn.Module, targets: Targets) -> dict[str, tuple[int, int]]:
    layers = linear_layers(model)
    sides = {name: layer_features(layers[name]) for name in targets.modules}
    for name in targets.parameters:
        *_, first, second = model.get_parameter(name).shape
        sides[name] = (first, second)
    return sides


def _check_tokens(model: PreTrainedModel, tokens: Collection[int], exclude: Collection[str]) -> None:
    embeddings = model.get_input_embeddings()
    if inside := [name for name, module in model.named_modules() if module is embeddings and name in exclude]:
        msg = (
            f"model.lora.trainable_token_indices trains a few embeddings, but model.lora.modules_to_save trains all of "
            f"{inside[0]}; leave one of the two out."
        )
        raise ConfigurationError(msg)
    vocabulary = int(getattr(model.config, "vocab_size", 0) or 0)
    for token in tokens:
        if not 0 <= token < vocabulary:
            msg = (
                f"model.lora.trainable_token_indices has {token}, but the model embeds tokens 0 to {vocabulary - 1}; "
                "give token ids of the tokenizer."
            )
            raise ConfigurationError(msg)


def _check_ranks(model: nn.Module, settings: LoraSettings, targets: Targets) -> None:
    """Refuses a rank that would make adapters larger than any layer, before memory is asked for."""
    longest = max(max(sides) for sides in _sides(model, targets).values())
    ranks = dict([initial_rank(settings) or ("r", settings.r)])
    for key, rank in (settings.rank_pattern or {}).items():
        ranks[f"rank_pattern.{key}"] = rank
    for name, rank in ranks.items():
        if rank > longest:
            msg = (
                f"model.lora.{name} is {rank}, but no layer to adapt has a side longer than {longest}, so every "
                "adapter would be larger than its layer; lower it, or write `lora: null`."
            )
            raise ConfigurationError(msg)


def _check_variants(model: nn.Module, settings: LoraSettings, targets: Targets) -> None:
    layers = linear_layers(model)
    for name in targets.modules:
        for variant in chosen_variants(settings):
            variant.check_layer(name, layers[name], rank_of(name, settings))


def initial_rank(settings: LoraSettings) -> tuple[str, int] | None:
    """The option by which a variant sets the rank instead of `r`, and its value; `None` without such a variant."""
    ranks = (variant.initial_rank for variant in chosen_variants(settings))
    return next((rank for rank in ranks if rank is not None), None)


def rank_of(name: str, settings: LoraSettings) -> int:
    """The rank that the settings give to a module or parameter, as PEFT applies `rank_pattern`."""
    pattern = settings.rank_pattern or {}
    return int(pattern.get(first_matching_pattern(list(pattern), name), settings.r))
