"""Saves the model of a GGUF file as float32 safetensors with its tokenizer; for rows with a base in 4 bits."""

import argparse
from pathlib import Path

from peers.smollm2 import load_base


def main() -> None:
    """Makes the copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="folder with one GGUF file")
    parser.add_argument("folder", type=Path, help="where to")
    options = parser.parse_args()
    model, tokenizer = load_base(options.package)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
