"""Data sets of a few dozen rows in the layouts of the real ones, learnable from single words."""

import json
from pathlib import Path

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
