"""A bare PyTorch loop with PEFT on SmolLM2-135M."""

from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

from peers.bare_loop import train
from peers.smollm2 import load_model, parse_arguments, training_rows


def main() -> None:
    """Trains on the first batches."""
    options = parse_arguments(__doc__)
    model, tokenizer = load_model(options)
    rows = training_rows(options, tokenizer).select(range(options.steps * options.batch_size))
    batches = DataLoader(rows, options.batch_size, collate_fn=DataCollatorForSeq2Seq(tokenizer))
    train(model, batches, 5e-4, bf16=options.bf16)


if __name__ == "__main__":
    main()
