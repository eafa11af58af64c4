"""Attach adapters to a pretrained model and decide which parameters are trainable."""

import warnings
from collections.abc import Collection
from math import prod
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.target_modules import (
    ends_with,
    layer_features,
    layers_not_adapted,
    linear_layers,
    summarize_names,
    weights_outside_linear_layers,
)
from lora_lightning.lora.target_parameters import parameters_to_suggest
from lora_lightning.lora.targets import Targets, find_targets, initial_rank, rank_of, smaller_sides
from lora_lightning.lora.variants import chosen_variants
from lora_lightning.lora.weight_tying import modules_tied_with_embeddings

# PEFT trains modules of these names in any case, whether the checkpoint has them or not.
HEADS = ("classifier", "score", "qa_outputs")
LITTLE = 0.01  # of the weights; whatever a preset leaves out beyond it is said


def newly_initialized_modules(model: nn.Module, missing_parameters: Collection[str]) -> list[str]:
    """The largest modules of which the pretrained checkpoint had no parameter at all.

    RoBERTa's two-layer head is one module, DeBERTa's pooler and classifier are two. Their weights are random, so they
    have to train.

    Args:
        model: The model from `from_pretrained`.
        missing_parameters: Dotted parameter names, from `from_pretrained(..., output_loading_info=True)`.

    Returns:
        Dotted module names, none inside another, in the model's order.
    """
    missing = set(missing_parameters)
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and parameters and missing.issuperset(parameters) and not inside:
            found.append(name)
    return found


def modules_trained_in_full(model: nn.Module, settings: LoraSettings, lacked: Collection[str]) -> list[str]:
    """The modules that train in full, beside the adapters.

    Args:
        model: The model before adapters are attached; may be on the meta device.
        settings: The adapter's settings; entries of `modules_to_save` may be the end of a dotted name.
        lacked: Modules that the pretrained checkpoint lacked, from `newly_initialized_modules`.

    Returns:
        Full dotted module names, the head among them.

    Raises:
        ConfigurationError: If the model has no module that an entry of `modules_to_save` names.
    """
    names = [name for name, _ in model.named_modules() if name]
    chosen = list(lacked)
    chosen += [name for name in names if name.endswith(HEADS) and name not in chosen]
    for wanted in settings.modules_to_save or []:
        matches = [name for name in names if name == wanted or name.endswith(f".{wanted}")]
        if not matches:
            choices = {name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()}
            msg = f"model.lora.modules_to_save: the model has no module {wanted!r}; {suggest_names(wanted, choices)}"
            raise ConfigurationError(msg)
        chosen += [name for name in matches if name not in chosen]
    if settings.ensure_weight_tying and set(tied := modules_tied_with_embeddings(model)).intersection(chosen):
        chosen += [name for name in tied if name not in chosen]
    return [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]


def attach_lora(
    model: PreTrainedModel,
    settings: LoraSettings,
    lacked: Collection[str],
    task_type: str | None,
    never_adapted: Collection[str] = (),
) -> PeftModel:
    """Freezes the base and adds trainable adapters to it.

    Args:
        model: The pretrained model; changed in place.
        settings: Rank, scaling, targets, variant.
        lacked: Module names from `newly_initialized_modules`; they train in full and are saved with the adapter.
        task_type: PEFT's name of the task, for example `SEQ_CLS`; `None` for a wrapper that passes all arguments on.
        never_adapted: Dotted names of other modules that get no adapter, such as a language model's head.

    Returns:
        The PEFT model. Adapters are float32, until a trainer with `bf16-true` or `16-true` casts the whole model. It
        starts as the pretrained model: with dW = 0, or, for PiSSA and OLoRA, with a part of W in the adapters.

    Raises:
        ConfigurationError: If a target or a module to save does not exist, or the rank is larger than every layer.
    """
    trained_in_full = modules_trained_in_full(model, settings, lacked)
    targets = find_targets(model, settings, exclude=[*trained_in_full, *never_adapted])
    _warn_if_rank_is_full(model, targets, settings)
    _warn_of_weights_without_adapter(model, settings, targets, [*trained_in_full, *never_adapted])
    config = _peft_config(model, settings, task_type, targets, trained_in_full)
    with warnings.catch_warnings():
        # EVA's directions are computed by the adapted model itself, which has to exist first.
        warnings.filterwarnings("ignore", message="lora with eva initialization used with low_cpu_mem_usage=False")
        peft_model: PeftModel = get_peft_model(model, config)
    for variant in chosen_variants(settings):
        variant.after_attaching(peft_model)
    return peft_model


def _warn_of_weights_without_adapter(
    model: PreTrainedModel, settings: LoraSettings, targets: Targets, exclude: Collection[str]
) -> None:
    """Says which share of the model a preset cannot reach, such as most of a mixture of experts."""
    if settings.target_modules not in ("all-linear", "attention-mlp") or settings.layers_to_transform is not None:
        return
    layers = {name: prod(layer_features(layer)) for name, layer in linear_layers(model, exclude).items()}
    others = weights_outside_linear_layers(model, exclude)
    refused = layers_not_adapted(model, layers)
    reached = {*targets.modules, *targets.parameters, *(name.removesuffix(".weight") for name in targets.parameters)}
    without = {name: size for name, size in (others | layers).items() if name not in reached}
    if settings.target_modules != "all-linear":  # what the user left out is not news
        without = {name: size for name, size in without.items() if name in others or name in refused}
    for end in settings.exclude_modules or ():
        without = {name: size for name, size in without.items() if not _is_in(name, end)}
    if (share := sum(without.values()) / max(sum(layers.values()) + sum(others.values()), 1)) < LITTLE:
        return
    msg = (
        f"model.lora.target_modules is {settings.target_modules}, but {100 * share:.0f} % of the weights outside "
        f"embeddings and head get no adapter and stay frozen: {summarize_names(without)}."
    )
    names = parameters_to_suggest(model, exclude)
    if names and not settings.target_parameters:
        msg += f" To adapt the experts, set target_parameters: [{', '.join(names)}] and lora_dropout: 0."
    warnings.warn(msg, stacklevel=4)


def _is_in(name: str, module_end: str) -> bool:
    """Whether a layer, or the module of a parameter, has a name with this end."""
    return ends_with(name, module_end) or ends_with(name.rpartition(".")[0], module_end)


def _peft_config(
    model: PreTrainedModel,
    settings: LoraSettings,
    task_type: str | None,
    targets: Targets,
    trained_in_full: list[str],
) -> LoraConfig:
    """PEFT's configuration of plain LoRA, with what the variants change in it."""
    arguments: dict[str, Any] = {
        "task_type": task_type,
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,  # PEFT annotates int and divides
        "lora_dropout": settings.lora_dropout,
        "target_modules": targets.modules,
        "target_parameters": targets.parameters or None,
        "bias": settings.bias,
        "modules_to_save": trained_in_full,
        "fan_in_fan_out": model.config.model_type == "gpt2",
        "trainable_token_indices": settings.trainable_token_indices,
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "ensure_weight_tying": settings.ensure_weight_tying,
        "init_lora_weights": settings.init_lora_weights,
        "rank_pattern": dict(settings.rank_pattern or {}),
        "alpha_pattern": dict(settings.alpha_pattern or {}),
    }
    config_class: type[LoraConfig] = LoraConfig
    for variant in chosen_variants(settings):
        arguments |= variant.peft_arguments()
        if variant.config_class is not LoraConfig:
            config_class = variant.config_class
    return config_class(**arguments)


def train_head_only(model: nn.Module, lacked: Collection[str]) -> None:
    """Freezes everything but the head and whatever else the pretrained checkpoint lacked.

    Args:
        model: The pretrained model; changed in place.
        lacked: Module names from `newly_initialized_modules`.
    """
    trained_in_full = modules_trained_in_full(model, LoraSettings(), lacked)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{module}.") for module in trained_in_full))


def trainable_parameter_names(model: nn.Module) -> list[str]:
    """Dotted names of the trainable parameters."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _warn_if_rank_is_full(model: nn.Module, targets: Targets, settings: LoraSettings) -> None:
    sizes = smaller_sides(model, targets)
    smallest = min(sizes, key=lambda name: sizes[name])
    option, r = initial_rank(settings) or ("r", rank_of(smallest, settings))
    if r > sizes[smallest]:
        msg = (
            f"model.lora.{option} is {r}, above the smaller side of {smallest} ({sizes[smallest]}): ranks beyond it "
            f"add parameters but no capacity; {option} up to {sizes[smallest]} is enough."
        )
        warnings.warn(msg, stacklevel=3)
