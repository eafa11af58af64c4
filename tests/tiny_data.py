"""A CLINC150 release and a table of a few dozen rows, learnable from single words."""

import csv
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
