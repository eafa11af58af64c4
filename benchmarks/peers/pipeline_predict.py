"""transformers.pipeline on a file of texts, one a line, with an adapter or a merged model; writes the labels as CSV."""

import argparse
import csv
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from peers.step_log import StepLog


def main() -> None:
    """Predicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="folder of the adapter or of the merged model")
    parser.add_argument("--texts", required=True, type=Path)
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    texts, log = options.texts.read_text(encoding="utf-8").splitlines(), StepLog()
    labels = {}  # an adapter's folder keeps the configuration of its base in a folder of its own
    if (options.model / "config").is_dir():
        labels = {"config": AutoConfig.from_pretrained(options.model, subfolder="config")}
    model = AutoModelForSequenceClassification.from_pretrained(options.model, **labels)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    classify: Any = pipeline("text-classification", model=model, tokenizer=tokenizer)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        # A generator, as the documentation advises: results come as soon as their batch is done.
        for text, found in zip(texts, classify((text for text in texts), batch_size=options.batch_size), strict=True):
            writer.writerow([text, found["label"], found["score"]])
    log.write()


if __name__ == "__main__":
    main()
