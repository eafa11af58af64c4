"""PEFT folders with random adapters on tiny backbones, as somebody else might have saved them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

AUTO_CLASSES = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "CAUSAL_LM": AutoModelForCausalLM,
}
LABELS = 3


def save_random_adapter(backbone: Path, folder: Path, task_type: str, *, zero: bool = False, **settings: Any) -> Path:
    """Saves an adapter whose update is random, and large enough to see.

    Args:
        backbone: A tiny model.
        folder: Where to.
        task_type: PEFT's.
        zero: Leave dW at 0.
        settings: For `LoraConfig`.

    Returns:
        The folder.
    """
    torch.manual_seed(0)
    more: dict[str, Any] = {"num_labels": LABELS} if task_type == "SEQ_CLS" else {}
    bits: BitsAndBytesConfig | None = settings.pop("quantization", None)
    if bits is not None:
        more |= {"quantization_config": bits, "device_map": "cpu"}
    base = AUTO_CLASSES[task_type].from_pretrained(backbone, dtype=torch.float32, **more)
    base.config.pad_token_id = base.config.pad_token_id or 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = get_peft_model(base, LoraConfig(task_type=task_type, **{"r": 4, "lora_alpha": 8, **settings}))
        for parameter in network.parameters():
            if parameter.requires_grad and not zero:
                with torch.no_grad():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        network.save_pretrained(str(folder), save_embedding_layers=False)
    if bits is not None:
        (folder / "quantization_config.json").write_text(bits.to_json_string())
    return folder


def left_beside(output: Path) -> list[str]:
    """What a merge left beside its output folder, drafts included."""
    return sorted(path.name for path in output.parent.iterdir()) if output.parent.exists() else []
