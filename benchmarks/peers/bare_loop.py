"""The thinnest way to train: a loop over batches with AdamW, and nothing that a trainer adds."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch

from peers.step_log import StepLog


def train(model: Any, batches: Iterable[dict[str, torch.Tensor]], learning_rate: float, *, bf16: bool) -> None:
    """Trains the parameters that require gradients, and writes the step log.

    Args:
        model: Takes the batch and returns an object with `loss`.
        batches: With `input_ids`, `attention_mask` and `labels`, each (rows, tokens) or (rows,).
        learning_rate: Of AdamW.
        bf16: Whether the forward pass runs in bfloat16's autocast.
    """
    device, log = torch.device("cuda" if torch.cuda.is_available() else "cpu"), StepLog()
    model.to(device).train()
    log.describe(model)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=learning_rate)
    for batch in batches:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            loss = model(**moved).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        labels = moved["labels"]
        log.add(moved["attention_mask"], loss, labels[:, 1:] if labels.ndim > 1 else None)
    log.write()
