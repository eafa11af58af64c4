"""Tables that commands print."""

import io

import pytest
from rich.console import Console, Group
from rich.table import Table

from lora_lightning.cli.tables import label_table, metrics_table
from lora_lightning.metrics.label_scores import LabelScore


def printed(table: Table | Group) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return [line.split() for line in console.file.getvalue().strip().splitlines()]  # type: ignore[attr-defined]


def test_no_cell_of_the_metrics_is_blank() -> None:
    assert printed(metrics_table({"val": {"loss": 0.5, "f1": 0.25}, "test": {"loss": 1.0}}))[-2:] == [
        ["loss", "(lower", "is", "better)", "│", "0.5000", "│", "1.0000"],
        ["f1", "│", "0.2500", "│", "-"],
    ]


@pytest.mark.parametrize(("labels", "shown"), [(20, 20), (21, 10), (150, 10)])
def test_few_labels_are_all_shown_and_of_many_the_worst(labels: int, shown: int) -> None:
    scores = [LabelScore(f"l{number}", 1.0, 0.5, 1 - number / 200, 1000 + number) for number in range(labels)]
    title, *_, last = printed(label_table("val_matched", scores))
    names = [row[0] for row in printed(label_table("val_matched", scores)) if row[0].startswith("l")][1:]
    if shown == labels:
        assert " ".join(title) == "validation matched, each label:"
        assert names == [score.label for score in scores]
        assert last == ["l19", "│", "1.0000", "│", "0.5000", "│", "0.9050", "│", "1,019"]
    else:
        assert " ".join(title) == f"validation matched, the 10 of {labels} labels with the lowest F1:"
        assert names == [f"l{number}" for number in range(labels - 1, labels - 11, -1)]


def test_a_label_cannot_control_the_terminal_or_break_the_table() -> None:
    *_, first, second = printed(label_table("test", [LabelScore("[bold]a\x1b[2J\n", None, 0.0, 0.0, 1)] * 2))
    assert first == second == [r"[bold]a\x1b[2J\n", "│", "-", "│", "0.0000", "│", "0.0000", "│", "1"]
