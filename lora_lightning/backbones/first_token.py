"""Leave out what no classifier reads: an encoder's last layer past its first token.

BERT and its kin classify from the first token's hidden state alone. The other tokens of the last layer serve as keys
and values, but their attention output and feed-forward network, two thirds of the layer, reach nothing.
"""

from operator import attrgetter
from typing import Any

from torch import nn
from transformers import PreTrainedModel

# The list of layers, and the module in the last one from which on every token is computed by itself.
PLACE_OF_FAMILY = {
    "bert": ("encoder.layer", "attention.output"),
    "camembert": ("encoder.layer", "attention.output"),
    "deberta": ("encoder.layer", "attention.output"),
    "deberta-v2": ("encoder.layer", "attention.output"),
    "distilbert": ("transformer.layer", "sa_layer_norm"),
    "electra": ("encoder.layer", "attention.output"),
    "mpnet": ("encoder.layer", "attention.LayerNorm"),
    "roberta": ("encoder.layer", "attention.output"),
    "xlm-roberta": ("encoder.layer", "attention.output"),
}


def keep_first_token_only(model: PreTrainedModel) -> bool:
    """Makes a sequence classifier compute its last layer for the first token only, in place; same logits.

    Args:
        model: From `AutoModelForSequenceClassification`. Its last hidden state then has one token.

    Returns:
        Whether the architecture is one that reads the first token.
    """
    place = PLACE_OF_FAMILY.get(model.config.model_type)
    if place is None:
        return False
    layers, cut = place
    last: nn.Module = attrgetter(layers)(model.base_model)[-1]
    attrgetter(cut)(last).register_forward_pre_hook(_first_token)
    return True


def _first_token(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    del module
    return tuple(hidden[:, :1] for hidden in inputs)
