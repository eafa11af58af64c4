"""litgpt's model, LoRA layers and chunked loss on SmolLM2-135M's shapes, in a bare loop like its finetuning script's.

Weights and tokens are random, which changes no time: a dense model does the same work for all of them.
"""

import argparse
import types
from collections.abc import Iterator
from typing import Any

import torch
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.utils import chunked_cross_entropy

from peers.bare_loop import train

LAYERS = ("query", "key", "value", "projection", "mlp")  # all linear layers but the head


class WithLoss(torch.nn.Module):
    """Computes the loss as litgpt does, with the head on chunks of 128 tokens.

    Args:
        model: litgpt's.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> Any:
        """Returns an object with the `loss` of (rows, tokens) ids."""
        logits = self.model(input_ids, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        return types.SimpleNamespace(loss=chunked_cross_entropy(logits, labels[..., 1:]))


def batches_of(rows: int, context: int, steps: int, vocabulary: int) -> Iterator[dict[str, torch.Tensor]]:
    """Random tokens: dictionaries of (rows, context), int64."""
    for _ in range(steps):
        ids = torch.randint(vocabulary, (rows, context))
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    options = parser.parse_args()
    on = {f"lora_{name}": True for name in LAYERS}
    config = Config.from_name("SmolLM2-135M-Instruct", lora_r=8, lora_alpha=16, lora_dropout=0.0, **on)
    model = GPT(config)
    mark_only_lora_as_trainable(model)
    model.max_seq_length = options.context
    batches = batches_of(options.batch_size, options.context, options.steps, config.vocab_size)
    train(WithLoss(model), batches, 5e-4, bf16=options.bf16)


if __name__ == "__main__":
    main()
