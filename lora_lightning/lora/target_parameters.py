"""Finds the parameters that get an adapter by `target_parameters`, such as those that hold all experts of a layer."""

from collections.abc import Collection, Iterable

from torch import Tensor, nn

from lora_lightning.compat.peft import is_taken_for_experts
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.target_modules import ends_with, linear_layers, summarize_names
from lora_lightning.lora.uncalled_layers import is_written_from_outside

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
MATRIX, EXPERTS = 2, 3  # dimensions of a parameter that PEFT adapts


def adaptable_parameters(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, Tensor]:
    """The parameters that `target_parameters` can name.

    Args:
        model: A transformers model, before adapters are attached; its tensors may be on the meta device.
        exclude: Dotted names of modules to leave out with everything inside, such as the head.

    Returns:
        Parameter by dotted name, in the model's order: (out_features, in_features), or with experts as a third
        dimension in front. Embeddings and convolutions are left out, and linear layers, which `target_modules` names,
        apart from those that PEFT would take for experts.
    """
    names = {name.rpartition(".")[2] for name in linear_layers(model)}
    renamed = {name for name in names if is_taken_for_experts(model, name)}
    otherwise = {name for name in linear_layers(model) if name.rpartition(".")[2] not in renamed}
    prefixes = tuple(f"{prefix}." for prefix in exclude)
    return {
        f"{name}.{own}" if name else own: parameter
        for name, module in model.named_modules()
        if name not in otherwise and not isinstance(module, nn.Embedding | CONVOLUTIONS)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() in (MATRIX, EXPERTS) and not f"{name}.".startswith(prefixes)
    }


def resolve_target_parameters(model: nn.Module, wanted: Collection[str], exclude: Collection[str]) -> dict[str, Tensor]:
    """Names every parameter that gets an adapter.

    Args:
        model: A transformers model, before adapters are attached.
        wanted: Names of parameters, or the ends of dotted names, as in PEFT.
        exclude: Dotted names of modules that train in full, or are never adapted.

    Returns:
        Parameter by full dotted name, in the model's order, at least one.

    Raises:
        ConfigurationError: If an entry matches none, or the weight of a layer that `target_modules` names, or PEFT
            cannot wrap the module that holds the parameter.
    """
    parameters = adaptable_parameters(model, exclude)
    for name in wanted:
        if any(ends_with(parameter, name) for parameter in parameters):
            continue
        layers = [layer for layer in linear_layers(model) if ends_with(f"{layer}.weight", name)]
        if layers:
            msg = (
                f"model.lora.target_parameters names {name!r}, the weight of a linear layer; name the layer in "
                f"model.lora.target_modules, as {name.removesuffix('.weight')!r}."
            )
            raise ConfigurationError(msg)
        if not parameters:
            msg = (
                f"model.lora.target_parameters names {name!r}, but all weights of this model that can have an adapter "
                "are those of linear layers; leave it out, and use target_modules."
            )
            raise ConfigurationError(msg)
        msg = (
            f"model.lora.target_parameters: the model has no parameter {name!r} that can have an adapter, only "
            f"{summarize_names(parameters)}; {suggest_names(name, {short_name(parameter) for parameter in parameters})}"
        )
        raise ConfigurationError(msg)
    found = {
        parameter: values
        for parameter, values in parameters.items()
        if any(ends_with(parameter, name) for name in wanted)
    }
    for parameter in found:
        _check_module(model, parameter, found)
    return found


def _check_module(model: nn.Module, parameter: str, all_parameters: Collection[str]) -> None:
    """Refuses a parameter whose module PEFT cannot wrap: the wrapper hides what is inside and what is set on it."""
    module = parameter.rpartition(".")[0]
    if inside := [name for name in all_parameters if name.rpartition(".")[0].startswith(f"{module}.")]:
        msg = (
            f"model.lora.target_parameters names {parameter} and {inside[0]}, but PEFT cannot adapt a parameter of a "
            "module and one of a module inside it; leave one of the two out."
        )
        raise ConfigurationError(msg)
    if len(model.get_parameter(parameter)) == 1 and getattr(model.get_submodule(module), "is_transposed", False):
        msg = (
            f"model.lora.target_parameters names {parameter}, which holds a single expert as (in_features, "
            "out_features): PEFT would add its update transposed; leave it out."
        )
        raise ConfigurationError(msg)
    if is_written_from_outside(model, module):
        msg = (
            f"model.lora.target_parameters names {parameter}, but the model sets attributes of {module} from outside, "
            "which PEFT's wrapper would hide from it; leave it out."
        )
        raise ConfigurationError(msg)


def parameters_to_suggest(model: nn.Module, exclude: Iterable[str] = ()) -> list[str]:
    """What `target_parameters` has to name so that adapters reach the experts of a mixture.

    Args:
        model: A transformers model, before adapters are attached.
        exclude: As in `adaptable_parameters`.

    Returns:
        Ends of names, for example `["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]`: of parameters that hold all
        experts of a layer, and of the weights of linear layers that PEFT would take for experts; empty for a model
        without experts.
    """
    layers = {f"{name}.weight" for name in linear_layers(model)}
    names = []
    for name, values in adaptable_parameters(model, exclude).items():
        module = name.rpartition(".")[0]
        is_mixture = "expert" in f"{module} {type(model.get_submodule(module)).__name__}".lower()
        if (values.dim() == EXPERTS and is_mixture) or name in layers:
            names.append(short_name(name))
    return list(dict.fromkeys(names))


def short_name(parameter: str) -> str:
    """The end of a parameter's name that is the same in every layer: what follows the layer's number."""
    parts = parameter.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :] if numbers else parts)
