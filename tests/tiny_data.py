"""A CLINC150 release of a few dozen rows, learnable from single words."""

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
