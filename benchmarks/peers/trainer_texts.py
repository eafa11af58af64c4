"""transformers.Trainer with PEFT on a table of texts, or of pairs of texts, with one label each.

What no option changes is transformers' default, as a user leaves it.
"""

import csv
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding

from peers.minilm import load_classifier, make_parser, training_arguments
from peers.step_log import StepLog
from peers.trainer_clock import ClockedTrainer

BATCH_SIZE = 32


def read_rows(file: Path, tokenizer: Any, columns: list[str], label: str, most: int) -> tuple[Dataset, list[str]]:
    """Tokenizes a table.

    Args:
        file: TSV with a header, without quoting.
        tokenizer: Of the model.
        columns: Those of the texts, one or two.
        label: The column of labels.
        most: Tokens of a row at most.

    Returns:
        Rows as the tokenizer makes them, with `label`; and the names of all labels.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = sorted({row[label] for row in rows})
    encoded = tokenizer(*([row[name] for row in rows] for name in columns), truncation=True, max_length=most)
    return Dataset.from_dict({**encoded, "label": [names.index(row[label]) for row in rows]}), names


def main() -> None:
    """Trains."""
    parser = make_parser(__doc__, "TSV file with a header")
    parser.add_argument("--columns", default="text", help="column of the texts; or two, with a comma between them")
    parser.add_argument("--label", default="label", help="column of the labels")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a row at most")
    options, log = parser.parse_args(), StepLog()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    columns = options.columns.split(",")
    rows, names = read_rows(options.data, tokenizer, columns, options.label, options.max_length)
    ClockedTrainer(
        log,
        model=load_classifier(options, len(names)),
        args=training_arguments(options, BATCH_SIZE),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
    ).train()
    log.write()


if __name__ == "__main__":
    main()
