"""Finds the modules of a head beside those of the base, by the structure of a model."""

from torch import nn
from transformers import PreTrainedModel


def modules_beside_base(model: PreTrainedModel) -> list[str]:
    """The children of a model that its base does not have.

    Most models hold their base in one child, named in `base_model_prefix`. T5's question answerer has the base's
    children and those of the head side by side, and Llama 4's language model calls its base otherwise: there the base
    has the embeddings and the layers.

    Args:
        model: With a head; may be on the meta device.

    Returns:
        Names of children, in the model's order.
    """
    children = dict(model.named_children())
    if model.base_model_prefix in children:
        return [name for name in children if name != model.base_model_prefix]
    return [name for name, child in children.items() if not _has_layers(child) and not isinstance(child, nn.Embedding)]


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ModuleList) for part in module.modules())
