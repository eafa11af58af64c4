"""Gives the fields of records the names that they have here, such as `output` for a data set's `completion`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lightning.datamodules.records import Record, decoded
from lora_lightning.errors import ConfigurationError, DataError, suggest_names

Columns = Mapping[str, str | list[str]]

FIELDS = ("instruction", "input", "output", "messages", "system", "tools", "history")
OF_A_MESSAGE = ("role", "content")
MESSAGES = "messages"
CHATS = (MESSAGES, "conversations")
OPTION = "--data.columns"
# Names that data sets give to an instruction and its response, the more specific ones first.
KNOWN_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "chosen"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)
KNOWN_CHATS = ("conversation", "dialogue", "dialog", "chat", "turns", "chosen")


def check_columns(columns: Columns | None) -> None:
    """Refuses columns of fields that there are not, before any data is read.

    Args:
        columns: Names in the data by field, or the lists of messages that make up `messages`.

    Raises:
        ConfigurationError: If a field is unknown, or a column serves two fields.
    """
    known = (*FIELDS, *OF_A_MESSAGE)
    for field, names in (columns or {}).items():
        if field not in known:
            msg = f"data.columns has the field {field!r}; {suggest_names(field, known)}"
            raise ConfigurationError(msg)
        if isinstance(names, list) and field != MESSAGES:
            msg = f"data.columns.{field} is {names!r}, but only `messages` may be several columns; give one name."
            raise ConfigurationError(msg)
    used = [name for names in (columns or {}).values() for name in _as_list(names)]
    if twice := [name for name in used if used.count(name) > 1 or not name]:
        msg = f"data.columns names the column {twice[0]!r} for two fields, or for none; each column is one field."
        raise ConfigurationError(msg)


def rename_fields(records: Sequence[Record], columns: Columns | None, *, are_prompts: bool = False) -> list[Record]:
    """Renames the fields of records.

    Args:
        records: From a file or the hub, at least one.
        columns: As in `check_columns`; `None` if the records have our names already.
        are_prompts: Whether the records need no response, nor all the columns: they come one by one.

    Returns:
        Records with the fields that `columns` names.

    Raises:
        DataError: If no record has a column, or one has both a column and the field that it becomes.
    """
    if not columns:
        return list(records)
    for name in () if are_prompts else _top_level(columns):
        if not any(name in record.fields for record in records):
            present = ", ".join(dict.fromkeys(key for record in records for key in record.fields))
            msg = f"{records[0].where}: data.columns names {name!r}, which no record has; there are {present}."
            raise DataError(msg)
    renamed = [_renamed(record, columns, are_prompts=are_prompts) for record in records]
    of_messages = {str(columns[field]): field for field in OF_A_MESSAGE if field in columns}
    for name in () if are_prompts else of_messages:
        if not any(name in turn for record in renamed for turn in _turns(record)):
            msg = f"{records[0].where}: data.columns names {name!r} for messages, but no message has it."
            raise DataError(msg)
    return [_with_renamed_turns(record, of_messages) for record in renamed]


def columns_hint(record: Record) -> str:
    """Says which option gives the fields of a record our names.

    Args:
        record: Without the fields that are needed.

    Returns:
        The end of a sentence, with the columns of this record if they have usual names.
    """
    found = _guess(record) or {"instruction": "prompt", "output": "completion"}
    shown = ", ".join(f"{field}: {_shown(names)}" for field, names in found.items())
    return f"or name its fields, such as {OPTION} '{{{shown}}}'"


def _guess(record: Record) -> Columns | None:
    fields = record.fields
    for prompt, response in KNOWN_PAIRS:
        if prompt in fields and response in fields:
            if _is_chat(fields[prompt]) and _is_chat(fields[response]):
                first, second = decoded(fields[prompt]), decoded(fields[response])
                return {MESSAGES: response if second[: len(first)] == first else [prompt, response]}
            if isinstance(fields[prompt], str) and isinstance(fields[response], str):
                pair = {"instruction": prompt, "output": response}
                return {field: name for field, name in pair.items() if field != name}
    return next(({MESSAGES: name} for name in KNOWN_CHATS if _is_chat(fields.get(name))), None)


def _top_level(columns: Columns) -> list[str]:
    """The columns that are fields of a record, not of a message."""
    return [name for field, names in columns.items() if field not in OF_A_MESSAGE for name in _as_list(names)]


def _renamed(record: Record, columns: Columns, *, are_prompts: bool) -> Record:
    fields = {name: value for name, value in record.fields.items() if name not in _top_level(columns)}
    for field, names in columns.items():
        present = [name for name in _as_list(names) if name in record.fields]
        if field in OF_A_MESSAGE or not present:
            continue
        if field in fields:
            msg = (
                f"{record.where}: data.columns says that {field} is {present[0]!r}, but the record has both; keep one."
            )
            raise DataError(msg)
        missing = [name for name in _as_list(names) if name not in present]
        if missing and not (are_prompts and missing == _as_list(names)[-1:]):  # prompts need no response
            msg = f"{record.where}: {missing[0]!r}, a part of {field} by data.columns, is missing; remove the record."
            raise DataError(msg)
        fields[field] = record.fields[present[0]] if len(present) == 1 else _joined(record, present)
    chats = [name for name in CHATS if name in fields]
    if "instruction" in columns and "instruction" in fields and chats:
        msg = f"{record.where}: data.columns names the instruction, but the record has {chats[0]} too; name only one."
        raise DataError(msg)
    return Record(record.where, fields)


def _turns(record: Record) -> list[dict[str, Any]]:
    """The messages of a record."""
    found: Any = next((decoded(record.fields[name]) for name in CHATS if name in record.fields), [])
    return [turn for turn in found if isinstance(turn, dict)] if isinstance(found, list) else []


def _with_renamed_turns(record: Record, names: Mapping[str, str]) -> Record:
    if not names or not (turns := _turns(record)):
        return record
    for number, turn in enumerate(turns, start=1):
        for name, field in names.items():
            if name in turn and field in turn:
                msg = f"{record.where}, message {number}: it has both {name!r} and {field!r}; keep one of them."
                raise DataError(msg)
    field = next(name for name in CHATS if name in record.fields)
    renamed = [{names.get(name, name): value for name, value in turn.items()} for turn in turns]
    if len(renamed) != len(decoded(record.fields[field])):  # what is no object is refused where it is read
        return record
    return Record(record.where, {**record.fields, field: renamed})


def _joined(record: Record, names: Sequence[str]) -> list[Any]:
    """The messages of several columns, one after the other."""
    messages: list[Any] = []
    for name in names:
        part = decoded(record.fields[name])
        if not isinstance(part, list):
            shown = json.dumps(part, default=str)[:60]
            msg = f"{record.where}: data.columns makes {name!r} a part of messages, but it is no list: {shown}."
            raise DataError(msg)
        if messages and part[: len(messages)] == messages:
            msg = (
                f"{record.where}: {name!r} begins with the messages before it; set data.columns: {{messages: {name}}}."
            )
            raise DataError(msg)
        messages += part
    return messages


def _is_chat(value: Any) -> bool:
    found = decoded(value)
    return isinstance(found, list) and bool(found) and all(isinstance(turn, dict) for turn in found)


def _as_list(names: str | list[str]) -> list[str]:
    return names if isinstance(names, list) else [names]


def _shown(names: str | list[str]) -> str:
    return f"[{', '.join(names)}]" if isinstance(names, list) else names
