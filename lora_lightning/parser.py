"""The command-line parser: a wrong option becomes one sentence with a remedy.

jsonargparse explains a mistake by listing every type it tried, with the whole value; `explain` keeps the one line
that matters and adds the nearest name that exists.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lora_lightning import callbacks, datamodules, tasks
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings

CLASSES = [getattr(module, name) for module in (tasks, datamodules, callbacks) for name in module.__all__]

PARSER_KEY = re.compile(r'^(?:- )?Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)$')
NOT_ACCEPTED = re.compile(
    r"^(?:(?:Option|Key|Group) '(?P<key>[^']+)' is not (?:accepted|expected)"
    r"|Subcommand '\w+' does not accept option '(?P<option>[^']+)'"
    r"|[Uu]nrecognized arguments?: (?:--)?(?P<word>[^\s=]+))"
)
OWN_SENTENCE = re.compile(r"^(?P<where>the configuration|[\w.]+)(?P<rest>:? (?:is|has|must be|there is) .*)$")
IMPORT_PATH = re.compile(
    r"^(?:Expected a dot import path string: |Expected a path but |No module named )'?(?P<name>[\w.]+)"
)
EXPECTED = re.compile(r"^Expected (?:a |an )?(?P<kind>.+?)(?:\. Got value: (?P<value>.*))?$")
NOISE = (
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
)


class ArgumentParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are this package's."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises one sentence instead of printing the usage and every type that was tried."""
        raise ConfigurationError(explain(message)) from ex


def explain(message: str) -> str:
    """Shortens jsonargparse's message.

    Args:
        message: Any message of the parser, often over many lines.

    Returns:
        One sentence: what was wrong, what is allowed, the nearest name. A message of another form comes back as one
        line.
    """
    path: list[tuple[int, str]] = []  # (indentation, key) of the enclosing "Parser key" lines
    for line in message.splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip().removeprefix("- ")
        key = PARSER_KEY.match(text)
        if key:
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key["key"])]
            text = key["rest"]
        if not text or text.startswith(NOISE):
            continue
        return _sentence(".".join(name for _, name in path), text)
    return " ".join(message.split())


def _sentence(path: str, text: str) -> str:
    where = path or "the configuration"
    if found := NOT_ACCEPTED.match(text):
        name = found["key"] or found["option"] or found["word"]
        names = _option_names()
        elsewhere = name.rsplit(".", 1)[-1] in names  # spelt right, so nothing near it helps
        remedy = ", which another class has; `lora-lightning fit --help` lists them." if elsewhere else ""
        return f"{where} has no option {name!r}{remedy or _suggest(name, names)}"
    if found := IMPORT_PATH.match(text):
        names = [cls.__name__ for cls in CLASSES]
        return f"{where}: there is no class {found['name']!r}{_suggest(found['name'], names)}"
    if found := EXPECTED.match(text):
        if found["value"] is None:
            return f"{where} must be {_kind(found['kind'])}."
        return f"{where} is {found['value'].strip()!r}, but {_kind(found['kind'])} is needed."
    found = OWN_SENTENCE.match(text)  # a nested class's parser has explained already
    if found and path and not text.startswith(("model.", "data.", "trainer.")):
        inner = "" if found["where"] == "the configuration" else f".{found['where']}"
        return f"{path}{inner}{found['rest']}"
    return text if found or not path else f"{path}: {text}"


def _kind(kind: str) -> str:
    if literal := re.search(r"Literal\[(?P<values>.+)\]", kind):
        return f"one of {literal['values']}"
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"a value of type \1", kind)


def _suggest(name: str, allowed: Iterable[str]) -> str:
    last = name.rsplit(".", 1)[-1]
    close = get_close_matches(last, sorted(set(allowed)), n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(match) for match in close)}?"
    return "; `lora-lightning fit --help` lists every option."


def _option_names() -> list[str]:
    """Every option of this package's classes and of the trainer."""
    names = [field.name for field in dataclasses.fields(LoraSettings)]
    names += ["model", "data", "trainer", "checkpoint", "early_stopping", "predictions", "seed_everything"]
    names += ["class_path", "init_args", "ckpt_path", "test_after_fit", "resume"]
    for cls in [*CLASSES, Trainer]:
        names += [name for name in inspect.signature(cls).parameters if name not in ("self", "args", "kwargs")]
    return names
