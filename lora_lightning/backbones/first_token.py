"""Leave out what no classifier reads: an encoder's last layer past its first token.

BERT and its kin classify from the first token's hidden state alone. The other tokens of the last layer serve as keys
and values, but their attention output and feed-forward network, two thirds of the layer, reach nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lora_lightning.lora.families import FAMILIES


def keep_first_token_only(model: PreTrainedModel) -> bool:
    """Makes a sequence classifier compute its last layer for the first token only, in place; same logits.

    Args:
        model: From `AutoModelForSequenceClassification`. Its last hidden state then has one token.

    Returns:
        Whether the architecture is one that reads the first token.
    """
    family = FAMILIES.get(model.config.model_type)
    if family is None or family.first_token is None:
        return False
    layers, cut = family.first_token
    last: nn.Module = attrgetter(layers)(model.base_model)[-1]
    place_of_cut: nn.Module = attrgetter(cut)(last)
    place_of_cut.first_token_only = True  # type: ignore[assignment]
    place_of_cut.register_forward_pre_hook(_first_token)
    return True


@contextmanager
def every_token(model: nn.Module) -> Iterator[None]:
    """Lets the last layer compute every token for a while, for whoever looks at hidden states; same logits.

    Args:
        model: Anything that contains a model; one without the shortcut stays as it is.
    """
    cuts = [module for module in model.modules() if getattr(module, "first_token_only", False)]
    for module in cuts:
        module.first_token_only = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in cuts:
            module.first_token_only = True  # type: ignore[assignment]


def _first_token(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(hidden[:, :1] for hidden in inputs) if module.first_token_only else inputs
