"""The classic GLUE download with a handful of rows a file: same folders, names, columns, marks and label words."""

from pathlib import Path

ROWS = 12
BYTE_ORDER_MARK = "\ufeff"

_MNLI = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2"
)
# By folder: columns of the files with labels (none for CoLA, which has no header), of the others, and label words.
LAYOUTS: dict[str, tuple[str, str, str]] = {
    "CoLA": ("", "index sentence", "0 1"),
    "SST-2": ("sentence label", "index sentence", "0 1"),
    "MRPC": ("Quality|#1 ID|#2 ID|#1 String|#2 String", "index|#1 ID|#2 ID|#1 String|#2 String", "0 1"),
    "QQP": ("id qid1 qid2 question1 question2 is_duplicate", "id question1 question2", "0 1"),
    "STS-B": (
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "index genre filename year old_index source1 source2 sentence1 sentence2",
        "0.000 5.000 2.500 3.800",
    ),
    "QNLI": ("index question sentence label", "index question sentence", "entailment not_entailment"),
    "RTE": ("index sentence1 sentence2 label", "index sentence1 sentence2", "not_entailment entailment"),
    "WNLI": ("index sentence1 sentence2 label", "index sentence1 sentence2", "0 1"),
    "MNLI": (f"{_MNLI} label1 gold_label", _MNLI, "neutral entailment contradiction"),
}
FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "qqp": "QQP",
    "stsb": "STS-B",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "mnli": "MNLI",
    "ax": "diagnostic",
}
TEXTS = ("sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String")
LABELS = ("label", "gold_label", "is_duplicate", "Quality", "score")


def text_of(column: str, row: int) -> str:
    """What stands in a text column; a quotation mark that is never closed in every third row."""
    return f"w{row} w{len(column)} " + '"w5 ' * (row % 3 == 0) + "w9 " * (row % 4)


def save_tiny_glue(folder: Path, task_name: str, rows: int = ROWS) -> Path:
    """Writes one task's files.

    Args:
        folder: Where to; made if needed.
        task_name: Such as `sst2`.
        rows: In each file.

    Returns:
        The folder.
    """
    place = folder / FOLDERS[task_name]
    place.mkdir(parents=True, exist_ok=True)
    if task_name == "ax":
        _write(place / "diagnostic.tsv", "index sentence1 sentence2", "", rows)
        return folder
    labeled, unlabeled, words = LAYOUTS[FOLDERS[task_name]]
    ends = ("_matched", "_mismatched") if task_name == "mnli" else ("",)
    for name in ("train", *(f"dev{end}" for end in ends)):
        _write(place / f"{name}.tsv", labeled, words, rows, mark=task_name == "mrpc")
    for end in ends:
        _write(place / f"test{end}.tsv", unlabeled, "", rows)
    return folder


def _write(path: Path, header: str, words: str, rows: int, mark: bool = False) -> None:
    columns = header.split("|" if "|" in header else " ")
    lines = ["\t".join(columns)] if header else []
    for row in range(rows):
        label = words.split()[row % len(words.split())] if words else ""
        if header:
            cells = [_cell(column, row, label) for column in columns]
        else:
            cells = ["gj04", label, "*" * (label == "0"), text_of("sentence", row)]
        lines.append("\t".join(cells))
    # As in the download, the last line of some files has no end.
    path.write_text((BYTE_ORDER_MARK if mark else "") + "\n".join(lines), encoding="utf-8")


def _cell(column: str, row: int, label: str) -> str:
    if column in TEXTS:
        return text_of(column, row)
    if column in LABELS:
        return label
    return str(row) if column in {"index", "id"} else "n/a"
