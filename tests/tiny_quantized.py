"""Tiny models with bitsandbytes' 4- and 8-bit layers, on a CPU."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel


def quantized_causal_lm(
    folder: Path, bits: int, dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    """Loads a causal language model with a quantized base.

    Args:
        folder: A saved model; its output layer stays as it is.
        bits: 4 (NF4, double quantization) or 8.
        dtype: Of everything else.
        settings: For `BitsAndBytesConfig`.

    Returns:
        The model.
    """
    if bits == 4:
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
            **settings,
        }
    else:
        settings = {"load_in_8bit": True, **settings}
    config = BitsAndBytesConfig(**settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map="cpu"
    )
    return model
