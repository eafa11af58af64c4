"""Tables that commands print."""

import io

from rich.console import Console

from lora_lightning.cli.tables import metrics_table


def test_no_cell_of_the_metrics_is_blank() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(metrics_table({"val": {"loss": 0.5, "f1": 0.25}, "test": {"loss": 1.0}}))
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert rows[-2:] == [
        ["loss", "(lower", "is", "better)", "│", "0.5000", "│", "1.0000"],
        ["f1", "│", "0.2500", "│", "-"],
    ]
