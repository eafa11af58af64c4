"""CLINC150 as both transformers peers use it."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from peers.minilm import make_parser

BATCH_SIZE = 32
OUT_OF_SCOPE = "oos"


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Reads the options of a peer that trains on CLINC150."""
    parser = make_parser(description, "folder with data_full.json")
    parser.add_argument("--quality", type=float, help="stop at this in-scope accuracy on the validation split")
    parser.add_argument("--cache", type=Path, help="folder with the tokens, or where to keep them")
    return parser.parse_args()


def cached_split(cache: Path | None, folder: Path, tokenizer: Any, split: str) -> tuple[Dataset, list[str]]:
    """Opens a split that an earlier start tokenized, or tokenizes and keeps it.

    Args:
        cache: Where tokens are kept; `None` for nowhere.
        folder: With `data_full.json`.
        tokenizer: Of the model.
        split: `train` or `val`.

    Returns:
        What `read_split` does.
    """
    if cache is None:
        return read_split(folder, tokenizer, split)
    names = cache / f"{split}.json"
    if not names.is_file():
        rows, labels = read_split(folder, tokenizer, split)
        rows.save_to_disk(str(cache / split))
        names.write_text(json.dumps(labels), encoding="utf-8")
    return Dataset.load_from_disk(str(cache / split)), json.loads(names.read_text(encoding="utf-8"))


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
