"""Loads the weights of an adapter's file into adapters that were just attached, and proves that all of them arrived."""

from collections.abc import Collection, Mapping

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from lora_lightning.errors import CheckpointError
from lora_lightning.lora.initial_factors import initial_factor_names
from lora_lightning.lora.parameter_names import name_saved_once, name_without_wrappers, pretrained_name

REMEDY = "use the base model and the adapter_config.json that it was trained with"


def load_adapter_state(
    network: PeftModel, weights: Mapping[str, Tensor], source: str, from_base: Collection[str] = ()
) -> None:
    """Loads weights into adapters, tokens and modules that train in full.

    Args:
        network: With adapters that have just been attached; changed in place.
        weights: Of the file, by PEFT's names, any floating dtype.
        source: What to call the adapter in messages.
        from_base: Modules that keep the weights of the base if the file has none of theirs; a part is refused.

    Raises:
        CheckpointError: If the file lacks a weight, or if one of its weights has no place in the network, another
            shape, or does not arrive.
    """
    own = _own_state(network)
    saved = {name: tensor for name, tensor in weights.items() if not is_saved_twice(name, weights)}
    held = [pretrained_name(name_saved_once(name)) for name in saved]
    inside = [f"{module}." for module in from_base]
    kept = tuple(start for start in inside if not any(name.startswith(start) for name in held))
    lacking = [name for name in own if name not in saved]
    _check_missing([name for name in lacking if not pretrained_name(name).startswith(kept)], len(own), source)
    _check_unexpected(network, {name: saved.pop(name) for name in list(saved) if name not in own}, source)
    for name, tensor in saved.items():
        if tensor.shape != own[name].shape:
            msg = (
                f"the adapter {source} has {pretrained_name(name)} of shape {tuple(tensor.shape)}, but this model "
                f"needs {tuple(own[name].shape)}; {REMEDY}."
            )
            raise CheckpointError(msg)
    set_peft_model_state_dict(network, {**own, **saved})  # PEFT wants weights that the base keeps, too
    arrived = _own_state(network)
    lost = [
        name for name, tensor in saved.items() if not torch.equal(arrived[name].cpu(), tensor.to(arrived[name]).cpu())
    ]
    if lost:
        msg = f"the adapter {source}: {pretrained_name(lost[0])} was not loaded; {REMEDY}."
        raise CheckpointError(msg)


def _own_state(network: PeftModel) -> dict[str, Tensor]:
    """What PEFT would save of the network, each weight once; what an adapter started with is in no file of PEFT's."""
    state: dict[str, Tensor] = get_peft_model_state_dict(network, save_embedding_layers=False)
    starts = initial_factor_names(network)
    return {name: tensor for name, tensor in state.items() if name not in starts and not is_saved_twice(name, state)}


def is_saved_twice(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a file has a weight under another name too, as PEFT saves biases and embeddings of modules_to_save.

    Args:
        name: In the file.
        weights: Of the file.

    Returns:
        True for the copy that may be left out.
    """
    other = name_saved_once(name)
    return name != other and other in weights and torch.equal(weights[name], weights[other])


def _check_missing(missing: Collection[str], total: int, source: str) -> None:
    if missing:
        first = pretrained_name(next(iter(missing)))
        msg = (
            f"the adapter {source} lacks {len(missing)} of the {total} weights that this model trains, for example "
            f"{first}, which would be untrained; {REMEDY}, or name its module in modules_to_save and train it again."
        )
        raise CheckpointError(msg)


def _check_unexpected(network: PeftModel, others: Mapping[str, Tensor], source: str) -> None:
    """Base weights may be in the file, as `save_embedding_layers` puts them there, if they are those of the base."""
    base = {name_without_wrappers(name): tensor for name, tensor in network.get_base_model().state_dict().items()}
    for name, tensor in others.items():
        found = base.get(name_without_wrappers(name_saved_once(name)))
        if found is None:
            msg = (
                f"the adapter {source} holds {len(others)} weights that have no place in this model, for example "
                f"{pretrained_name(name)}; {REMEDY}."
            )
            raise CheckpointError(msg)
        if found.shape != tensor.shape or not torch.equal(found.cpu(), tensor.to(found).cpu()):
            msg = (
                f"the adapter {source} replaces the base model's {name_without_wrappers(name)}, which its "
                "adapter_config.json does not train, so a checkpoint would not hold it; merge the adapter into its "
                "base with `lora-lightning merge`, and train a new adapter on the result."
            )
            raise CheckpointError(msg)
