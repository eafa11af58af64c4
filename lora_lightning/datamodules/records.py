"""Records with named fields, from a table, a JSON list or the hub, each with the place it came from for messages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lightning.datamodules.hub import load_hub_dataset
from lora_lightning.datamodules.tables import READERS, check_characters, read_table, read_text
from lora_lightning.errors import DataError

JSON_LIST = ".json"
RECORD_FILES = (*READERS, JSON_LIST)
HUB_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        where: File and line, or data set and row, for messages.
        fields: Its values, those that are not null.
    """

    where: str
    fields: dict[str, Any]


def read_records(path: str | Path) -> list[Record]:
    """Reads a JSON list of objects (`.json`), or a table by its ending.

    Args:
        path: The file.

    Returns:
        At least one record.

    Raises:
        DataError: If the file cannot be read or a row is malformed; names the line or the record.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in RECORD_FILES:
        msg = f"{path} is no file of records that can be read; its ending must be one of {', '.join(RECORD_FILES)}."
        raise DataError(msg)
    if ending == JSON_LIST:
        return _read_json_list(path)
    table = read_table(path)
    return [
        _record(table.where(row), {name: cells[row] for name, cells in table.columns.items()})
        for row in range(len(table))
    ]


def hub_records(dataset: str, config: str | None, remedy: str) -> dict[str, list[Record]]:
    """Reads a data set of the hub.

    Args:
        dataset: Its id, for example `Salesforce/wikitext`.
        config: Its configuration, for example `wikitext-2-raw-v1`; `None` where it has one only.
        remedy: What to do without network, to end the message.

    Returns:
        Records by `train`, `val`, `test`, as far as the data set has them.

    Raises:
        DataError: If it cannot be fetched, or has no training split.
    """
    splits = load_hub_dataset(dataset, config, remedy)
    if "train" not in splits:
        msg = f"the data set {dataset} has no split train, only {', '.join(splits)}; choose another."
        raise DataError(msg)
    return {
        HUB_SPLITS[name]: [_record(f"{dataset}, {name}, row {number}", row) for number, row in enumerate(rows, start=1)]
        for name, rows in splits.items()
        if name in HUB_SPLITS
    }


def text_field(record: Record, name: str, may_be_empty: bool = False, remedy: str = "add it") -> str:
    """A text of a record.

    Args:
        record: The record.
        name: Of the field.
        may_be_empty: Whether it may have no letters in it.
        remedy: What to do where there is no such field, to end the message.

    Returns:
        The text.

    Raises:
        DataError: If it is missing, no text, or empty.
    """
    if name not in record.fields:
        there = ", ".join(record.fields) or "none"
        msg = f"{record.where}: the field {name!r} is missing; the record has {there}; {remedy}."
        raise DataError(msg)
    value = record.fields[name]
    if not isinstance(value, str):
        msg = f"{record.where}: the field {name!r} holds {json.dumps(value, default=str)[:60]} where a text is needed."
        raise DataError(msg)
    if not (value.strip() or may_be_empty):
        msg = f"{record.where}: the field {name!r} is empty; remove the record or fill it in."
        raise DataError(msg)
    return value


def _record(where: str, row: dict[str, Any]) -> Record:
    return Record(where, {name: value for name, value in row.items() if value is not None})


def _read_json_list(path: Path) -> list[Record]:
    try:
        rows = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not JSON ({error}); mend it, or use .jsonl for one object a line."
        raise DataError(msg) from error
    if not isinstance(rows, list):
        msg = f"{path} holds no list of records; put them in [ ], or use .jsonl for one object a line."
        raise DataError(msg)
    if not rows:
        msg = f"{path} holds no rows; give a file with at least one."
        raise DataError(msg)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            msg = f"{path}, record {number}: expected an object with named fields, found {json.dumps(row)[:80]}."
            raise DataError(msg)
        check_characters(row, f"{path}, record {number}")
    return [_record(f"{path}, record {number}", row) for number, row in enumerate(rows, start=1)]
