"""Loads the pretrained model again, without anything of a training run in it."""

import copy

import torch
from transformers import PreTrainedModel

from lora_lightning.backbones.finished_head import is_sequence_classifier, match_head_to_labels
from lora_lightning.backbones.loading import load_model, renamed_weights
from lora_lightning.backbones.quantization import Quantization
from lora_lightning.lora.quantized import keep_4bit_weights_in_order


def load_plain_base(model: PreTrainedModel, backbone: str, quantization: Quantization | None = None) -> PreTrainedModel:
    """Loads the pretrained model once more, without adapters and without what training changed.

    Args:
        model: The model in training: its class and its configuration count. What the checkpoint lacks, such as a head,
            is random in the fresh one.
        backbone: Hub id, folder or `package://` name.
        quantization: As the model in training; `None` for float32.

    Returns:
        The model, in evaluation mode, on the CPU unless it was quantized elsewhere.

    Raises:
        BackboneError: If it cannot be found, or its weights do not fit.
    """
    # A trainer may have made the GPU the default device.
    with torch.device("cpu"):
        config = copy.deepcopy(model.config)
        loaded = load_model(type(model), backbone, config, quantization, key_mapping=renamed_weights(model))
        if is_sequence_classifier(model):
            loaded = match_head_to_labels(loaded, backbone)
    keep_4bit_weights_in_order(loaded.model)
    loaded.model.eval()
    return loaded.model
