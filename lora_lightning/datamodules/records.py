"""Records with named fields, from a table, a JSON list or the hub; each knows its place for error messages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lightning.datamodules.hub import load_hub_dataset, named_splits
from lora_lightning.errors import DataError
from lora_lightning.runs.tables import READERS, check_characters, parse_json, read_table, read_text, refuse_folder

JSON_LIST = ".json"
RECORD_FILES = (*READERS, JSON_LIST)


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        where: File and line, or data set and row, for error messages.
        fields: Its values by name, without those that are null.
    """

    where: str
    fields: dict[str, Any]


def read_records(path: str | Path, *, keep_blank_lines: bool = False) -> list[Record]:
    """Reads a JSON list of objects (`.json`), or a table in the format of its file extension.

    Args:
        path: The file.
        keep_blank_lines: As in `read_table`.

    Returns:
        At least one record.

    Raises:
        DataError: If the file cannot be read or a row is malformed; the message names the line or the record.
    """
    path = Path(path)
    ending = path.suffix.lower()
    refuse_folder(path, RECORD_FILES)
    if ending not in RECORD_FILES:
        msg = f"{path} cannot be read as records; its extension must be one of {', '.join(RECORD_FILES)}."
        raise DataError(msg)
    if ending == JSON_LIST:
        return _read_json_list(path)
    table = read_table(path, keep_blank_lines=keep_blank_lines)
    return [
        _record(table.where(row), {name: cells[row] for name, cells in table.columns.items()})
        for row in range(len(table))
    ]


def hub_records(dataset: str, config: str | None, remedy: str) -> dict[str, list[Record]]:
    """Reads a data set of the hub.

    Args:
        dataset: Its id, for example `Salesforce/wikitext`.
        config: Its configuration, for example `wikitext-2-raw-v1`; `None` if it has only one.
        remedy: What to do without a network connection; ends the error message.

    Returns:
        Records by `train`, `val` and `test`, for the splits that the data set has.

    Raises:
        DataError: If it cannot be downloaded or has no training split.
    """
    splits = load_hub_dataset(dataset, config, remedy)
    if "train" not in splits:
        msg = f"the data set {dataset} has no split train, only {', '.join(splits)}; use another data set."
        raise DataError(msg)
    return {
        split: [_record(f"{dataset}, {name}, row {number}", row) for number, row in enumerate(splits[name], start=1)]
        for split, name in named_splits(dataset, splits).items()
    }


def text_field(record: Record, name: str, may_be_empty: bool = False, remedy: str = "add it") -> str:
    """A text of a record.

    Args:
        record: The record.
        name: The field's name.
        may_be_empty: Whether the text may be blank.
        remedy: What to do if the field is missing; ends the error message.

    Returns:
        The text.

    Raises:
        DataError: If it is missing, not a text, or blank.
    """
    if name not in record.fields:
        present = ", ".join(record.fields) or "none"
        msg = f"{record.where}: the field {name!r} is missing; the record has {present}; {remedy}."
        raise DataError(msg)
    value = record.fields[name]
    if not isinstance(value, str):
        msg = f"{record.where}: the field {name!r} must be a text, but it is {json.dumps(value, default=str)[:60]}."
        raise DataError(msg)
    if not (value.strip() or may_be_empty):
        msg = f"{record.where}: the field {name!r} is empty; remove the record or fill it in."
        raise DataError(msg)
    return value


def decoded(value: Any) -> Any:
    """Reads a list or an object that is written as JSON text, as tables have it.

    Args:
        value: Of a field.

    Returns:
        The list or object; anything else as it is.
    """
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return parse_json(value)
        except (ValueError, RecursionError):
            return value
    return value


def _record(where: str, row: dict[str, Any]) -> Record:
    return Record(where, {name: value for name, value in row.items() if value is not None})


def _read_json_list(path: Path) -> list[Record]:
    try:
        rows = parse_json(read_text(path))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not JSON ({error}); fix it, or use the ending .jsonl for one object per line."
        raise DataError(msg) from error
    if not isinstance(rows, list):
        msg = f"{path} is not a list of records; put them in [ ], or use the ending .jsonl for one object per line."
        raise DataError(msg)
    if not rows:
        msg = f"{path} has no rows; use a file with at least one."
        raise DataError(msg)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            msg = f"{path}, record {number}: expected an object with named fields, found {json.dumps(row)[:80]}."
            raise DataError(msg)
        check_characters(row, f"{path}, record {number}")
    return [_record(f"{path}, record {number}", row) for number, row in enumerate(rows, start=1)]
