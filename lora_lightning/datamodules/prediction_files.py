"""Predictions as a table: CSV or JSON lines, by the file's ending."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.runs.files import atomic_file

SUFFIXES = (".csv", ".jsonl")


def check_table_name(path: Path) -> None:
    """Refuses a file whose ending names no format.

    Args:
        path: `--predictions.file`.

    Raises:
        ConfigurationError: If the ending is neither `.csv` nor `.jsonl`.
    """
    if path.suffix not in SUFFIXES:
        msg = f"--predictions.file is {str(path)!r}, but its extension must be {' or '.join(SUFFIXES)}."
        raise ConfigurationError(msg)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV or as JSON lines, by the file's ending.

    Args:
        path: The file; its folder is made if needed.
        rows: At least one. A list or a mapping becomes JSON in a CSV cell.

    Raises:
        ConfigurationError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            stream = io.TextIOWrapper(file, encoding="utf-8", newline="")
            if path.suffix == ".csv":
                writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
            else:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            stream.detach()  # flushes; the draft stays open for atomic_file
    except OSError as error:
        msg = f"the predictions cannot be written to {path} ({error.strerror}); choose another --predictions.file."
        raise ConfigurationError(msg) from error


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def save_records(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Writes rows to predict as JSON lines.

    Args:
        rows: Values by column.
        path: The file.

    Returns:
        The file.

    Raises:
        DataError: If JSON cannot hold a value.
    """
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            msg = f"input {number} cannot be written as JSON ({error}); give texts, numbers and lists of them."
            raise DataError(msg) from error
    path.write_text("".join(lines), encoding="utf-8")
    return path
