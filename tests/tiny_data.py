"""Data sets of a few dozen rows in the layouts of the real ones, learnable from single words."""

import csv
import json
from pathlib import Path
from typing import Any

INTENTS = ("balance", "transfer", "weather", "timer")  # two domains of the real data set, two intents each
ROWS = {"train": 16, "val": 5, "test": 7}
OUT_OF_SCOPE_ROWS = {"train": 8, "val": 4, "test": 6}


def save_tiny_clinc150(folder: Path, variants: tuple[str, ...] = ("full",)) -> Path:
    """Writes `data_<variant>.json` in the original release's layout.

    Args:
        folder: Where to; made if needed.
        variants: Names of the files to write, all with the same rows.

    Returns:
        The folder.
    """
    content: dict[str, list[list[str]]] = {}
    for split, count in ROWS.items():
        content[split] = [
            [f"w{10 + index} w{100 + row} {split[0]}" + " w5" * (row % 4), intent]
            for index, intent in enumerate(INTENTS)
            for row in range(count)
        ]
    for split, count in OUT_OF_SCOPE_ROWS.items():
        content[f"oos_{split}"] = [[f"w{60 + row} w{120 + row}", "oos"] for row in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for variant in variants:
        (folder / f"data_{variant}.json").write_text(json.dumps(content))
    return folder


def save_tiny_squad(folder: Path) -> Path:
    """Writes `train-v2.0.json` and `dev-v2.0.json` in the official layout.

    An answer is one or two of the words w150 to w153, which stand only where there is one; every third question has
    none. Contexts have 12 to 60 words, so that some need several windows of 32 tokens.

    Args:
        folder: Where to; made if needed.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, articles in (("train-v2.0.json", range(6)), ("dev-v2.0.json", range(6, 9))):
        data = [{"title": f"article {number}", "paragraphs": _paragraphs(number)} for number in articles]
        (folder / name).write_text(json.dumps({"version": "v2.0", "data": data}))
    return folder


def _paragraphs(article: int) -> list[dict[str, Any]]:
    paragraphs = []
    for place in range(6):
        number = 6 * article + place
        words = [f"w{(7 * number + 3 * step) % 140}" for step in range(12 + 12 * (place % 5))]
        answer = None if number % 3 == 2 else " ".join([f"w{150 + number % 4}"] * (1 + number % 2))
        if answer is not None:
            words[(5 * number) % len(words)] = answer
        context = " ".join(words)
        answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
        question = {"id": f"q{number}", "question": f" w{number % 9}", "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": context, "qas": [question]})
    return paragraphs


def save_tiny_table(path: Path, rows: int = 40, label: str = "word") -> Path:
    """Writes a CSV file with the columns `text`, `other` and `label`.

    Args:
        path: The file; its folder is made if needed.
        rows: How many.
        label: `word` for one of two, `set` for some of three with commas between, `number`.

    Returns:
        The file.
    """
    labels = {
        "word": lambda row: ("no", "yes")[row % 2],
        "set": lambda row: ",".join(name for bit, name in enumerate("abc") if row >> bit & 1),
        "number": lambda row: row % 5 / 4,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "other", "label"])
        for row in range(rows):
            writer.writerow([f"w{10 + row % 8} w{60 + row}" + " w5" * (row % 4), f"w{3 + row % 5}", labels[label](row)])
    return path


def save_tiny_wikitext(folder: Path) -> Path:
    """Writes `wiki.{train,valid,test}.raw`: sentences in which each of 20 words is followed by the next.

    Args:
        folder: Where to; made if needed.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", 60), ("valid", 15), ("test", 20)):
        sentences = [" ".join(f"w{(start + place) % 20}" for place in range(12)) for start in range(lines)]
        (folder / f"wiki.{name}.raw").write_text("\n".join(sentences) + "\n")
    return folder


def save_tiny_instructions(folder: Path) -> Path:
    """Writes `instructions.jsonl`: Alpaca's fields, the response repeats the instruction's word.

    Args:
        folder: Where to; made if needed.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "instruction": f"w{number % 10}",
            "input": "w30" if number % 2 else "",
            "output": " ".join([f"w{number % 10}"] * (1 + number % 7)),
        }
        for number in range(40)
    ]
    (folder / "instructions.jsonl").write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return folder / "instructions.jsonl"
