"""Embeddings that share their weights with the output layer, and `ensure_weight_tying`, which trains them as one."""

from collections.abc import Collection, Sequence

from torch import nn
from transformers import PreTrainedModel

from lora_lightning.compat.transformers import tied_weights
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings


def modules_tied_with_embeddings(model: nn.Module) -> list[str]:
    """The modules that have the weights of the input embeddings.

    Args:
        model: A transformers model, before adapters are attached; may be on the meta device.

    Returns:
        Dotted names, the embeddings first; empty if their weights are not shared.
    """
    if not isinstance(model, PreTrainedModel):
        return []
    embeddings = model.get_input_embeddings()
    own = next((name for name, module in model.named_modules() if module is embeddings), None)
    sources = {name.rpartition(".")[0]: kept.rpartition(".")[0] for name, kept in tied_weights(model).items()}
    if own is None or own not in {*sources, *sources.values()}:
        return []
    source = sources.get(own, own)
    return [own, *sorted(name for name in {source, *sources} - {own} if sources.get(name, name) == source)]


def check_weight_tying(model: PreTrainedModel, settings: LoraSettings, in_full: Collection[str]) -> None:
    """Refuses to part tied weights, and to ask for ties that there are not or that PEFT does not make.

    Args:
        model: Before adapters are attached; may be on the meta device.
        settings: The adapter's settings.
        in_full: Dotted names of the modules that train in full.

    Raises:
        ConfigurationError: If one of two tied modules trains alone, or `ensure_weight_tying` has no effect.
    """
    tied = modules_tied_with_embeddings(model)
    trained = [name for name in tied if name in in_full]
    if settings.ensure_weight_tying:
        _check_effect(model, settings, tied, trained)
    elif trained:
        others = ", ".join(name for name in tied if name != trained[0])
        remedy = "leave it out" if _why_not_tied(model, tied) else "set ensure_weight_tying to true, which trains one"
        msg = (
            f"model.lora.modules_to_save: {trained[0]} shares its weights with {others}, and training a copy of them "
            f"would part the two; {remedy}, or write `lora: null`."
        )
        raise ConfigurationError(msg)


def _check_effect(model: PreTrainedModel, settings: LoraSettings, tied: Sequence[str], trained: Sequence[str]) -> None:
    option = "model.lora.ensure_weight_tying is true, but"
    if not tied:
        msg = f"{option} no weights of {type(model).__name__} are tied to its embeddings; leave it out."
        raise ConfigurationError(msg)
    if not trained and not settings.trainable_token_indices:
        msg = (
            f"{option} none of {', '.join(tied)} is trained, so they stay tied anyway; name one in "
            "model.lora.modules_to_save, or leave ensure_weight_tying out."
        )
        raise ConfigurationError(msg)
    if trained and (why := _why_not_tied(model, tied)):
        msg = f"{option} {why}; leave it out, and {trained[0]} in model.lora.modules_to_save as well."
        raise ConfigurationError(msg)


def _why_not_tied(model: PreTrainedModel, tied: Sequence[str]) -> str:
    """Why PEFT cannot train tied modules as one: it replaces all but the embeddings by a linear layer without bias."""
    for name in tied[1:]:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            return f"PEFT ties linear layers alone, and {name} is of type {type(module).__name__}"
        if module.bias is not None:
            return f"PEFT would leave out the bias of {name}"
    return ""
