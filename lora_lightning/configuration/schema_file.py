"""The file that describes every option of a config: a JSON schema for editors, and what `fit --help` shows.

`lora_lightning.training.config_schema` generates it. Reading it imports nothing heavy.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA_FILE = Path(__file__).with_name("fit.schema.json")
WORDS = {"integer": "N", "number": "X", "string": "TEXT", "array": "LIST", "object": "OPTIONS"}
OF_CLASSES = ("model", "data")  # their options depend on a class


@dataclass(frozen=True)
class Option:
    """An option of a config, as it is named on the command line.

    Attributes:
        name: Dotted, such as `model.lora.r`.
        values: What it takes, such as `N` or `{linear,cosine,constant}`; empty if any value of a kind that the
            description names.
        description: Sentences.
        default: As YAML writes it; empty if there is none, or if it is null.
        owner: The class that has it; empty if it does not depend on a class.
    """

    name: str
    values: str
    description: str
    default: str
    owner: str = ""


@cache
def read_schema() -> dict[str, Any]:
    """Reads the file."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema


@cache
def all_options() -> tuple[Option, ...]:
    """Lists the options of a config in the order of the schema, those of `model` and `data` once for each class."""
    options: list[Option] = []
    for name, entry in read_schema()["properties"].items():
        if name in OF_CLASSES:
            for owner in class_names(name):
                options += class_options(name, owner)
        else:
            options += _options(name, entry, "")
    return tuple(options)


def class_names(group: str) -> list[str]:
    """Lists the classes of a group.

    Args:
        group: `model`, `data` or `trainer.callbacks`.
    """
    entry = read_schema()
    for part in group.split("."):
        entry = entry["properties"][part]
    choice = entry.get("anyOf", [entry])[0]
    names: list[str] = choice["properties"]["class_path"]["anyOf"][0]["enum"]
    return names


def class_summary(name: str) -> str:
    """Returns what a class of `class_names` is, in a sentence or more.

    Args:
        name: Of the class.
    """
    return str(read_schema()["$defs"][name].get("description", ""))


def class_options(group: str, owner: str) -> list[Option]:
    """Lists the options of a class.

    Args:
        group: As in `class_names`.
        owner: Name of the class.
    """
    return list(_options(group, read_schema()["$defs"][owner], owner))[1:]


def option_names() -> set[str]:
    """Returns the dotted names of all options."""
    return {option.name for option in all_options()}


def _options(name: str, entry: dict[str, Any], owner: str) -> Iterator[Option]:
    default = entry.get("default")
    shown = "" if default is None else default if isinstance(default, str) else json.dumps(default)
    yield Option(name, _values(entry), entry.get("description", ""), shown, owner)
    for key, below in _properties(entry).items():
        yield from _options(f"{name}.{key}", below, owner)


def _properties(entry: dict[str, Any]) -> dict[str, Any]:
    """The options below an option, in it or in one of the forms that it may have; a class has its own list."""
    if "$ref" in entry:
        return _properties(read_schema()["$defs"][entry["$ref"].rpartition("/")[2]])
    if "class_path" in entry.get("properties", {}):
        return {}
    found: dict[str, Any] = dict(entry.get("properties", {}))
    for form in entry.get("anyOf", []):
        found |= _properties(form)
    return found


def _values(entry: dict[str, Any]) -> str:
    """What an option takes; null is not shown, since the description says what it means."""
    if "$ref" in entry or "properties" in entry:
        return WORDS["object"]
    if "enum" in entry:
        return "{" + ",".join(map(str, entry["enum"])) + "}"
    if "anyOf" in entry:
        return "|".join(dict.fromkeys(filter(None, map(_values, entry["anyOf"]))))
    kinds = entry.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return "|".join("{true,false}" if kind == "boolean" else WORDS[kind] for kind in kinds if kind != "null")
