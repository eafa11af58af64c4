"""The JSON schema of a config of `fit`: generated from the parser's own classes, read by editors and by `--help`.

`python -m lora_lightning.training.config_schema` writes the file. A test fails if it does not describe today's options.
"""

import inspect
import json
from collections.abc import Callable, Collection, Iterable
from types import ModuleType
from typing import Any

from lightning import Callback, Trainer

from lora_lightning import callbacks, datamodules, tasks
from lora_lightning.configuration.parser import ArgumentParser
from lora_lightning.configuration.schema_file import SCHEMA_FILE
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.lightning_cli import (
    GROUPED,
    TRAINER_DEFAULTS,
    add_group_arguments,
    add_run_arguments,
)

Schema = dict[str, Any]
# Options of the trainer that take a class; the parser would describe every class of Lightning and torch below it.
CLASS_OPTIONS = {
    "accelerator": "cpu, gpu, or auto for what the machine has.",
    "strategy": "auto, ddp, or a class such as FullyShardedStrategy; configs/trainer has examples.",
    "logger": "A class such as TensorBoardLogger, CSVLogger, WandbLogger or MLFlowLogger, a list of them, or false.",
    "callbacks": "Monitors of this package, callbacks of Lightning or your own. `callbacks+` adds to those of configs.",
    "plugins": "Plugins of Lightning.",
    "profiler": "simple, advanced, or a class of Lightning.",
}
ORDER = ("seed_everything", "model", "data", "trainer", "checkpoint", "early_stopping")
NOT_FOR_US = {"$schema", "required"}  # a key for editors; configs may be combined, so none of them has all keys
SEED = "Seed of the adapter's and the head's initial weights, dropout and the order of batches; false seeds nothing."


def config_schema() -> Schema:
    """Describes every option of a config.

    Returns:
        A JSON schema (draft 2020-12).
    """
    parser = ArgumentParser(description="A config of `lora-lightning fit`.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help=SEED)
    add_run_arguments(parser)
    add_group_arguments(parser)
    parser.add_class_arguments(Trainer, "trainer", skip=set(CLASS_OPTIONS))
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    schema = _schema_of(parser)
    properties, definitions = schema["properties"], schema.setdefault("$defs", {})
    properties["trainer"]["description"] = "Options of Lightning's Trainer."
    for group, made_by in GROUPED.items():
        properties[group]["description"] = _first_paragraph(made_by)
    trainer = properties["trainer"]["properties"]
    trainer |= {name: {"description": text} for name, text in CLASS_OPTIONS.items()}
    one = _class_choice(public_classes(callbacks, Callback), definitions)
    trainer["callbacks"] |= {"anyOf": [one, {"type": "array", "items": one}, {"type": "null"}]}
    trainer["callbacks+"] = trainer["callbacks"]
    properties["trainer"]["patternProperties"] = {r"\+$": {}}  # adds to the list of an earlier config
    names = [name for name in inspect.signature(Trainer).parameters if name in trainer]
    properties["trainer"]["properties"] = {name: trainer[name] for name in dict.fromkeys((*names, *trainer))}
    properties["model"] = _class_choice(public_classes(tasks, AdaptationTask), definitions)
    properties["data"] = _class_choice(public_classes(datamodules, AdaptationDataModule), definitions, {"backbone"})
    for name in ("monitor", "mode"):  # those of checkpoint
        del properties["early_stopping"]["properties"][name]
    schema["properties"] = {name: properties[name] for name in dict.fromkeys((*ORDER, *properties))}
    return schema


def public_classes(room: ModuleType, base: type) -> list[type]:
    """Lists the classes that a config may name.

    Args:
        room: `tasks`, `datamodules` or `callbacks`.
        base: Their base class.

    Returns:
        Those from which no other class of the room is derived.
    """
    found = [getattr(room, name) for name in room.__all__]
    found = [cls for cls in found if issubclass(cls, base)]
    return [cls for cls in found if not any(issubclass(other, cls) for other in found if other is not cls)]


def _schema_of(parser: ArgumentParser) -> Schema:
    schema: Schema = _simplified(json.loads(parser.get_completion_script("jsonschema")))
    return schema


def _simplified(schema: Any) -> Any:
    """Leaves out required keys, defaults of groups, whose options have their own, and line ends in descriptions."""
    if isinstance(schema, list):
        return [_simplified(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    simple = {key: _simplified(value) for key, value in schema.items() if key not in NOT_FOR_US}
    if isinstance(text := simple.get("description"), str):
        simple["description"] = " ".join(text.split())
    if isinstance(simple.get("default"), dict):
        del simple["default"]
    return simple


def _class_choice(classes: Iterable[type], definitions: Schema, skip: Collection[str] = ()) -> Schema:
    """A class by name with its options; those of a class that is not among them are not described."""
    rules, names = [], []
    for cls in classes:
        parser = ArgumentParser(description=_first_paragraph(cls))
        parser.add_class_arguments(cls, skip={*skip})
        own = _schema_of(parser)
        definitions |= own.pop("$defs", {})
        definitions[cls.__name__] = own
        is_it = {"properties": {"class_path": {"pattern": rf"(^|\.){cls.__name__}$"}}, "required": ["class_path"]}
        rules.append({"if": is_it, "then": {"properties": {"init_args": {"$ref": f"#/$defs/{cls.__name__}"}}}})
        names.append(cls.__name__)
    return {
        "type": ["string", "object"],
        "properties": {
            "class_path": {"anyOf": [{"enum": names}, {"type": "string"}]},
            "init_args": {"type": "object"},
            "dict_kwargs": {"type": "object"},
        },
        "additionalProperties": False,
        "allOf": rules,
    }


def _first_paragraph(made_by: Callable[..., Any]) -> str:
    return " ".join((made_by.__doc__ or "").strip().partition("\n\n")[0].split())


def schema_text() -> str:
    """Returns the content of the file."""
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
