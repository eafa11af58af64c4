"""CSV files: numbers in Lightning's `metrics.csv`, texts and tables as files beside it, no pictures."""

import csv
import io
from pathlib import Path

from lora_lightning.loggers.board import Board, Table
from lora_lightning.runs.files import write_text_atomically


class CsvBoard(Board):
    """What `CSVLogger` leaves: `metrics.csv`, `hparams.yaml`, `texts/` and `tables/`."""

    shows_texts = True

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Writes `texts/<tag>/step_<step>.md`."""
        self._write(f"texts/{tag}/step_{step:06d}.md", text)

    def add_table(self, tag: str, table: Table, step: int) -> None:
        """Writes `tables/<tag>/step_<step>.csv`."""
        content = io.StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(table.rows)
        self._write(f"tables/{tag}/step_{step:06d}.csv", content.getvalue())

    def _write(self, name: str, content: str) -> None:
        path = Path(self.logger.log_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, content)
