"""CLINC150 and its model as both transformers peers use them."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

BATCH_SIZE = 32
OUT_OF_SCOPE = "oos"


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Reads the options of a peer that trains on CLINC150."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--data", required=True, type=Path, help="folder with data_full.json")
    parser.add_argument("--steps", type=int, default=-1, help="training steps; one epoch if not given")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--group", action="store_true", help="batches of texts of similar length")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the base model")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--targets", default="query,value", help="names of modules, or all-linear")
    parser.add_argument("--pooler", action="store_true", help="also train the pooler")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--quality", type=float, help="stop at this in-scope accuracy on the validation split")
    return parser.parse_args()


def read_split(folder: Path, tokenizer: Any, split: str) -> tuple[Dataset, list[str]]:
    """Tokenizes a split.

    Args:
        folder: With `data_full.json`.
        tokenizer: Of the model.
        split: `train` or `val`.

    Returns:
        Rows with `input_ids`, `attention_mask` and `label`; and the names of all labels.
    """
    data = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    names = sorted({label for _, label in data["train"]} | {OUT_OF_SCOPE})
    rows = data[split] + data[f"oos_{split}"]
    texts = tokenizer([text for text, _ in rows], truncation=True, max_length=128)
    labels = [names.index(label) for _, label in rows]
    columns = {name: texts[name] for name in ("input_ids", "attention_mask")}
    return Dataset.from_dict({**columns, "label": labels}), names


def load_model(options: argparse.Namespace, labels: int) -> Any:
    """Loads the encoder with a new head and a PEFT adapter.

    Args:
        options: From `parse_arguments`.
        labels: Their number.

    Returns:
        The model.
    """
    torch.manual_seed(0)
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), options.dropout)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=labels, **dropout)
    targets = options.targets if options.targets == "all-linear" else options.targets.split(",")
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets)
    if options.pooler:  # all linear layers include it, and PEFT would give it an adapter, too
        lora.modules_to_save, lora.exclude_modules = ["classifier", "pooler"], ["pooler.dense"]
    return get_peft_model(model, lora)


def in_scope_accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64], out_of_scope: int) -> float:
    """Share of in-scope queries whose label is predicted.

    Args:
        logits: (queries, labels).
        labels: (queries,).
        out_of_scope: Index of that label.

    Returns:
        A fraction in [0, 1].
    """
    inside = labels != out_of_scope
    return float((logits.argmax(-1) == labels)[inside].mean())
