"""Saves a BERT with random weights beside the tokenizer of another encoder; for `growth_rows`."""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

HEAD_WIDTH = 64


def main() -> None:
    """Makes the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path, help="folder of the tokenizer")
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("layers", type=int)
    parser.add_argument("hidden", type=int)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // HEAD_WIDTH,
        intermediate_size=4 * options.hidden,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    tokenizer.save_pretrained(options.folder)
    BertModel(config).save_pretrained(options.folder)


if __name__ == "__main__":
    main()
