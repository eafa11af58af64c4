"""Read records from JSON files and from the hub, each with the place it came from for messages."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lora_lightning.backbones import hub_is_reachable
from lora_lightning.errors import DataError

HUB_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Record:
    """One JSON object.

    Attributes:
        where: File and line, or data set and row, for messages.
        fields: Its values.
    """

    where: str
    fields: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuses another JSON value.

        Raises:
            DataError: If there are no named fields.
        """
        fields: Any = self.fields
        if not isinstance(fields, dict):
            msg = f"{self.where}: expected an object with named fields, found {json.dumps(fields)[:80]}."
            raise DataError(msg)


def read_text(path: str | Path) -> str:
    """Reads a text file.

    Args:
        path: In UTF-8; a byte order mark is left out.

    Returns:
        Its content, line ends as they are.

    Raises:
        DataError: If it cannot be read or is not UTF-8; names the line.
    """
    try:
        raw = Path(path).expanduser().read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read ({str(error.strerror).lower()}); check the path."
        raise DataError(msg) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        msg = f"{path}, line {line}: byte {error.start} of the file is not UTF-8; convert the file."
        raise DataError(msg) from error


def read_records(path: str | Path) -> list[Record]:
    """Reads a JSON list of objects (`.json`), or one object a line (any other ending); empty lines are left out.

    Args:
        path: The file, in UTF-8.

    Returns:
        At least one record.

    Raises:
        DataError: If the file cannot be read, is not JSON or holds something else; names the line or the record.
    """
    content = read_text(path)
    if Path(path).suffix == ".json":
        rows = _parse(content, str(path))
        if not isinstance(rows, list):
            msg = f"{path} holds a {type(rows).__name__} where a list of records is needed; use .jsonl for lines."
            raise DataError(msg)
        records = [Record(f"{path}, record {number}", row) for number, row in enumerate(rows, start=1)]
    else:
        records = [
            Record(f"{path}, line {number}", _parse(line, f"{path}, line {number}"))
            for number, line in enumerate(re.split("\r\n|\r|\n", content), start=1)
            if line.strip()
        ]
    if not records:
        msg = f"{path} holds no record."
        raise DataError(msg)
    return records


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
    import datasets  # noqa: PLC0415  # a second and 100 MiB that local files do not need

    try:
        download = datasets.DownloadConfig(local_files_only=not hub_is_reachable())
        splits = datasets.load_dataset(dataset, config, download_config=download)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        msg = f"the data set {dataset} could not be fetched from the hub; without network {remedy}"
        raise DataError(msg) from error
    if "train" not in splits:
        msg = f"the data set {dataset} has no split train, only {', '.join(splits)}; choose another."
        raise DataError(msg)
    return {
        HUB_SPLITS[name]: [Record(f"{dataset}, {name}, row {number}", row) for number, row in enumerate(rows, start=1)]
        for name, rows in splits.items()
        if name in HUB_SPLITS
    }


def text_field(record: Record, name: str, may_be_empty: bool = False) -> str:
    """A text of a record.

    Args:
        record: The record.
        name: Of the field.
        may_be_empty: Whether it may have no letters in it.

    Returns:
        The text.

    Raises:
        DataError: If it is missing, no text, or empty.
    """
    if name not in record.fields:
        msg = f"{record.where}: the field {name!r} is missing; the record has {', '.join(record.fields) or 'none'}."
        raise DataError(msg)
    value = record.fields[name]
    if not isinstance(value, str):
        msg = f"{record.where}: the field {name!r} holds {json.dumps(value)[:60]} where a text is needed."
        raise DataError(msg)
    if not (value.strip() or may_be_empty):
        msg = f"{record.where}: the field {name!r} is empty; remove the record or fill it in."
        raise DataError(msg)
    return value


def hold_out(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Sets a random share aside for validation.

    Args:
        items: At least two.
        share: In (0, 1); at least one item is held out and one stays.
        seed: Of the choice.

    Returns:
        What stays and what is held out, both in their order.
    """
    count = min(max(round(share * len(items)), 1), len(items) - 1)
    held_out = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    kept = [item for number, item in enumerate(items) if number not in held_out]
    return kept, [items[number] for number in sorted(held_out)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        msg = f"{where}: not JSON ({error}); mend or remove it."
        raise DataError(msg) from error
