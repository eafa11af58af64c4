"""Switches gradient checkpointing on."""

from typing import TYPE_CHECKING, cast

from torch import nn

from lora_lightning.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Switches non-reentrant gradient checkpointing on.

    transformers also lets the embeddings' output require a gradient, as a frozen base under adapters needs.

    Args:
        model: A transformers model, adapters in place; changed in place.

    Raises:
        ConfigurationError: If its architecture has no gradient checkpointing.
    """
    try:
        cast("PreTrainedModel", model).activation_checkpointing_enable()
    except ValueError as error:
        msg = f"model.gradient_checkpointing is true, but {type(model).__name__} does not support it; set it to false."
        raise ConfigurationError(msg) from error
