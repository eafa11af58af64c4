"""Attach adapters to a pretrained model and settle which parameters train."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, cast

from peft import AdaLoraConfig, EvaConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lora_lightning.compat.peft import AdaLoraLayer, first_matching_pattern
from lora_lightning.compat.transformers import Conv1D
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.config import AdaLoraSettings, LoraSettings
from lora_lightning.lora.delta import ADAPTER, adapted_layers, adapter_factors
from lora_lightning.lora.target_modules import linear_layers, resolve_target_modules
from lora_lightning.lora.target_patterns import check_patterns, restrict_to_layers
from lora_lightning.lora.variants.initial_factors import keep_initial_factors

HEADS = (
    "classifier",
    "score",
    "qa_outputs",
)  # PEFT trains what is called so in any case, found in the checkpoint or not


def newly_initialized_modules(model: nn.Module, missing_parameters: Collection[str]) -> list[str]:
    """The largest modules all of whose parameters the pretrained checkpoint lacked.

    RoBERTa's two-layer head is one module, DeBERTa's pooler and classifier are two. Their weights are random, so
    they have to train.

    Args:
        model: The model as `from_pretrained` made it.
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
    """The modules that train whole, beside the adapters.

    Args:
        model: The model before adapters are attached; may be on the meta device.
        settings: The adapter's settings; its `modules_to_save` may be the end of a dotted name.
        lacked: What the pretrained checkpoint lacked, from `newly_initialized_modules`.

    Returns:
        Full dotted module names, the head among them.

    Raises:
        ConfigurationError: If an entry of `modules_to_save` is no module of the model.
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
    return [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]


def find_targets(model: PreTrainedModel, settings: LoraSettings, exclude: Collection[str]) -> list[str]:
    """Names every layer that gets an adapter, and checks that the settings fit these layers.

    Args:
        model: The model before adapters are attached; may be on the meta device.
        settings: The adapter's settings.
        exclude: Dotted names of modules that train in full, or are never adapted.

    Returns:
        Full dotted names, in the model's order, at least one.

    Raises:
        ConfigurationError: If a name, pattern, layer or token does not exist, or a rank is too high for a layer.
    """
    targets = resolve_target_modules(model, settings.target_modules, exclude)
    targets = restrict_to_layers(targets, settings.layers_to_transform, settings.layers_pattern)
    check_patterns(targets, {"rank_pattern": settings.rank_pattern, "alpha_pattern": settings.alpha_pattern})
    if settings.trainable_token_indices:
        _check_tokens(model, settings.trainable_token_indices, exclude)
    _check_ranks(model, settings, targets)
    _check_initialization(model, settings, targets)
    return targets


def _check_tokens(model: PreTrainedModel, tokens: Collection[int], whole: Collection[str]) -> None:
    embeddings = model.get_input_embeddings()
    if inside := [name for name, module in model.named_modules() if module is embeddings and name in whole]:
        msg = (
            f"model.lora.trainable_token_indices trains a few embeddings, and model.lora.modules_to_save all of "
            f"{inside[0]}; leave one of the two out."
        )
        raise ConfigurationError(msg)
    vocabulary = int(getattr(model.config, "vocab_size", 0) or 0)
    for token in tokens:
        if not 0 <= token < vocabulary:
            msg = (
                f"model.lora.trainable_token_indices has {token}, but the model embeds tokens 0 to {vocabulary - 1}; "
                "give the numbers that the tokenizer has for them."
            )
            raise ConfigurationError(msg)


def _check_ranks(model: nn.Module, settings: LoraSettings, targets: Collection[str]) -> None:
    """Refuses a rank that would make adapters larger than any layer, before memory is asked for."""
    layers = linear_layers(model)
    longest = max(max(_width_and_height(layers[name])) for name in targets)
    ranks = {"r": settings.r}
    if settings.adalora is not None:
        ranks = {"adalora.init_r": settings.adalora.init_r}
    for key, rank in (settings.rank_pattern or {}).items():
        ranks[f"rank_pattern.{key}"] = rank
    for name, rank in ranks.items():
        if rank > longest:
            msg = (
                f"model.lora.{name} is {rank}, but no layer to adapt has a side longer than {longest}, so that every "
                "adapter would be larger than its layer; lower it, or write `lora: null`."
            )
            raise ConfigurationError(msg)


def _check_initialization(model: nn.Module, settings: LoraSettings, targets: Collection[str]) -> None:
    layers = linear_layers(model)
    initialization = settings.init_lora_weights
    for name in targets:
        if initialization == "olora" and isinstance(layers[name], Conv1D):
            msg = (
                f"model.lora.init_lora_weights is olora, which PEFT computes wrongly for the transposed weight of "
                f"{name}; choose pissa, or another initialisation."
            )
            raise ConfigurationError(msg)
        rank, (width, height) = rank_of(name, settings), _width_and_height(layers[name])
        if settings.changes_base and rank > min(width, height):
            msg = (
                f"model.lora.init_lora_weights is {initialization}, but r = {rank} is above the smaller side of {name} "
                f"({min(width, height)}), so it has no such directions; lower r, or use rank_pattern."
            )
            raise ConfigurationError(msg)
        if initialization == "eva":
            rho = settings.eva_config.rho if settings.eva_config else EvaConfig().rho
            if round(rank * rho) > width:
                msg = (
                    f"model.lora.init_lora_weights is eva, but r * rho = {round(rank * rho)} directions are more than "
                    f"the {width} inputs of {name}; lower r or eva_config.rho."
                )
                raise ConfigurationError(msg)


def _width_and_height(layer: nn.Module) -> tuple[int, int]:
    """(in_features, out_features); a quantised weight is packed and has another shape."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)  # type: ignore[arg-type]  # of a Conv1D


def rank_of(module: str, settings: LoraSettings) -> int:
    """The rank that the settings give to a module, as PEFT reads `rank_pattern`."""
    pattern = settings.rank_pattern or {}
    return int(pattern.get(first_matching_pattern(list(pattern), module), settings.r))


def attach_lora(
    model: PreTrainedModel,
    settings: LoraSettings,
    lacked: Collection[str],
    task_type: str | None,
    never_adapted: Collection[str] = (),
) -> PeftModel:
    """Freezes the base and adds trainable adapters.

    Args:
        model: The pretrained model; changed in place.
        settings: Rank, scaling, targets, variant.
        lacked: Module names from `newly_initialized_modules`; they train in full and are saved with the adapter.
        task_type: PEFT's word for the task, for example `SEQ_CLS`; `None` for a wrapper that changes no argument.
        never_adapted: Dotted names of modules that get no adapter either, such as a language model's head.

    Returns:
        The PEFT model. Adapters are float32 and the model starts as the pretrained one: with dW = 0, or, for PiSSA and
        OLoRA, with a part of W in the adapters.

    Raises:
        ConfigurationError: If a target or a module to save does not exist, or the rank is larger than every layer.
    """
    whole = modules_trained_in_full(model, settings, lacked)
    targets = find_targets(model, settings, exclude=[*whole, *never_adapted])
    _warn_if_rank_is_full(model, targets, settings)
    shared: dict[str, Any] = {
        "task_type": task_type,
        "lora_alpha": settings.lora_alpha,  # PEFT annotates int and divides
        "lora_dropout": settings.lora_dropout,
        "target_modules": targets,
        "bias": settings.bias,
        "modules_to_save": whole,
        "fan_in_fan_out": model.config.model_type == "gpt2",
        "trainable_token_indices": settings.trainable_token_indices,
    }
    config = _adalora_config(settings, shared) if settings.adalora else _lora_config(settings, shared)
    with warnings.catch_warnings():
        # EVA's directions are computed by the adapted model itself, which has to be there.
        warnings.filterwarnings("ignore", message="lora with eva initialization used with low_cpu_mem_usage=False")
        peft_model: PeftModel = get_peft_model(model, config)
    for layer in adapted_layers(peft_model).values():
        if isinstance(layer, AdaLoraLayer):  # PEFT's cast of the factors to float32 lets it train (0.21.2)
            layer.ranknum[ADAPTER].requires_grad_(False)  # noqa: FBT003
        if settings.changes_base:
            keep_initial_factors(layer, *adapter_factors(layer))
    return peft_model


def _lora_config(settings: LoraSettings, shared: Mapping[str, Any]) -> LoraConfig:
    eva = asdict(settings.eva_config) if settings.eva_config else {}
    return LoraConfig(
        r=settings.r,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        # LoftQ starts as PEFT does by default, until the quantised base and the weights it came from are there.
        init_lora_weights=settings.init_lora_weights == "loftq" or cast("Any", settings.init_lora_weights),
        eva_config=EvaConfig(**eva) if settings.init_lora_weights == "eva" else None,
        rank_pattern=dict(settings.rank_pattern or {}),
        alpha_pattern=dict(settings.alpha_pattern or {}),
        **shared,
    )


def _adalora_config(settings: LoraSettings, shared: Mapping[str, Any]) -> AdaLoraConfig:
    budget = asdict(cast("AdaLoraSettings", settings.adalora))
    # How long training takes is known once the data is there: `start_budget` says.
    return AdaLoraConfig(total_step=budget["tinit"] + budget["tfinal"] + 1, **budget, **shared)


def freeze_A(model: nn.Module) -> None:  # noqa: N802  # the matrix
    """Leaves A as it is, as LoRA-FA does; it still belongs to the adapter."""
    for layer in adapted_layers(model).values():
        adapter_factors(layer)[0].requires_grad = False


def train_head_only(model: nn.Module, lacked: Collection[str]) -> None:
    """Freezes everything but the head and whatever else the pretrained checkpoint lacked.

    Args:
        model: The pretrained model; changed in place.
        lacked: Module names from `newly_initialized_modules`.
    """
    whole = modules_trained_in_full(model, LoraSettings(), lacked)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{module}.") for module in whole))


def trainable_parameter_names(model: nn.Module) -> list[str]:
    """Dotted names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _warn_if_rank_is_full(model: nn.Module, targets: Collection[str], settings: LoraSettings) -> None:
    layers = linear_layers(model)
    sizes = {name: min(_width_and_height(layers[name])) for name in targets}
    smallest = min(sizes, key=lambda name: sizes[name])
    option, r = ("adalora.init_r", settings.adalora.init_r) if settings.adalora else ("r", rank_of(smallest, settings))
    if r > sizes[smallest]:
        msg = (
            f"model.lora.{option} is {r}, above the smaller side of {smallest} ({sizes[smallest]}): ranks beyond it "
            f"add parameters and no capacity; {option} up to {sizes[smallest]} is enough."
        )
        warnings.warn(msg, stacklevel=3)
