"""A bare PyTorch loop with PEFT on CLINC150."""

import random
from collections.abc import Iterator
from typing import Any

from transformers import AutoTokenizer, DataCollatorWithPadding

from peers.bare_loop import train
from peers.clinc150 import BATCH_SIZE, parse_arguments, read_split
from peers.minilm import load_classifier

POOL = 50 * BATCH_SIZE  # rows that are sorted together, as transformers does


def batches_of(rows: list[Any], collate: Any, steps: int, *, group: bool) -> Iterator[dict[str, Any]]:
    """One epoch in random order, or its first steps.

    Args:
        rows: Tokenized texts.
        collate: Pads a batch.
        steps: At most; all if not above 0.
        group: Whether batches have texts of similar length.

    Yields:
        Batches.
    """
    order = random.Random(0)  # noqa: S311
    order.shuffle(rows)
    if group:
        pools = [rows[start : start + POOL] for start in range(0, len(rows), POOL)]
        rows = [row for pool in pools for row in sorted(pool, key=lambda row: len(row["input_ids"]))]
    starts = list(range(0, len(rows), BATCH_SIZE))
    order.shuffle(starts)
    for start in starts[: steps if steps > 0 else None]:
        yield collate(rows[start : start + BATCH_SIZE])


def main() -> None:
    """Trains."""
    options = parse_arguments(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows, names = read_split(options.data, tokenizer, "train")
    batches = batches_of(list(rows), DataCollatorWithPadding(tokenizer), options.steps, group=options.group)
    train(load_classifier(options, len(names)), batches, options.learning_rate, bf16=options.bf16)


if __name__ == "__main__":
    main()
