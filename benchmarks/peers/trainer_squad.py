"""transformers.Trainer with PEFT on SQuAD 2.0, with its windows as in transformers' own example.

What no option changes is transformers' default, as a user leaves it; windows are padded to the longest of a batch.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding

from peers.minilm import load_reader, make_parser, training_arguments
from peers.step_log import StepLog
from peers.trainer_clock import ClockedTrainer

BATCH_SIZE = 16


def read_windows(file: Path, tokenizer: Any, most: int, overlap: int) -> Dataset:
    """Cuts contexts into windows that overlap, each with its question.

    Args:
        file: In SQuAD's layout.
        tokenizer: Of the model, a fast one.
        most: Tokens of a window at most.
        overlap: Tokens of the context that neighbours share.

    Returns:
        Windows as the tokenizer makes them, with `start_positions` and `end_positions`: the tokens of the first answer,
        or 0 for the token at the start where the window lacks it.
    """
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    rows = [(question, paragraph["context"]) for paragraph in paragraphs for question in paragraph["qas"]]
    encoded = tokenizer(
        [question["question"].strip() for question, _ in rows],
        [context for _, context in rows],
        truncation="only_second",
        max_length=most,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    sources, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    places = []
    for window, source in enumerate(sources):
        answers = rows[source][0]["answers"]
        inside = [token for token, part in enumerate(encoded.sequence_ids(window)) if part == 1]
        places.append(_place(answers[0], inside, offsets[window]) if answers else (0, 0))
    starts, ends = zip(*places, strict=True)
    return Dataset.from_dict({**encoded, "start_positions": list(starts), "end_positions": list(ends)})


def _place(answer: dict[str, Any], inside: list[int], offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """The first and the last token of an answer among those of the context, or (0, 0)."""
    start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
    if offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    tokens = [token for token in inside if offsets[token][1] > start and offsets[token][0] < end]
    return tokens[0], tokens[-1]


def main() -> None:
    """Trains."""
    parser = make_parser(__doc__, "file in SQuAD's layout")
    parser.add_argument("--max-length", type=int, default=384, help="tokens of a window at most")
    parser.add_argument("--stride", type=int, default=128, help="tokens that neighbouring windows share")
    options, log = parser.parse_args(), StepLog()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ClockedTrainer(
        log,
        model=load_reader(options),
        args=training_arguments(options, BATCH_SIZE),
        train_dataset=read_windows(options.data, tokenizer, options.max_length, options.stride),
        data_collator=DataCollatorWithPadding(tokenizer),
    ).train()
    log.write()


if __name__ == "__main__":
    main()
