"""The command-line parser: a wrong option becomes one sentence with a remedy.

jsonargparse explains a mistake by listing every type it tried, with the whole value; `explain` keeps the one line
that matters and adds the nearest name that exists.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lora_lightning import callbacks, datamodules, tasks
from lora_lightning.errors import DEBUG, ConfigurationError
from lora_lightning.lora.config import LoraSettings

CLASSES = [getattr(module, name) for module in (tasks, datamodules, callbacks) for name in module.__all__]
OWNERS = [*CLASSES, LoraSettings, Trainer]  # of options
FEW = 3  # to name in one sentence

PARSER_KEY = re.compile(r'^(?:- )?Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)$')
NOT_ACCEPTED = re.compile(
    r"^(?:(?:Option|Key|Group) '(?P<key>[^']+)' is not (?:accepted|expected)"
    r"|(?:Subcommand '\w+'|Group '(?P<group>[\w.]+)') does not accept option '(?P<option>[^']+)'"
    r"|[Uu]nrecognized arguments?: (?:--)?(?P<word>[^\s=]+))"
)
OWN_SENTENCE = re.compile(r"^(?P<where>the configuration|[\w.]+)(?P<rest>:? (?:is|has|must be|there is) .*)$")
IMPORT_PATH = re.compile(
    r"^(?:Expected a dot import path string: |No module named '?|Expected a path but )(?P<name>.*?)"
    r"(?:'|: .*| either not accessible or invalid)?$"
)
REQUIRED = re.compile(r"^the following arguments are required: (?:\w+\.)?(?P<names>.+)$")
NO_CLASS = re.compile(r"^Not a valid subclass of (?P<base>\w+)(?:\. Got value: (?P<value>.*))?$")
NO_OPTIONS = re.compile(r"^Unable to load config '?(?P<value>.*?)'?$|^.*must be a mapping, not (?P<kind>\w+)$")
NO_ARGUMENT = re.compile(r"^(?P<cls>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<name>\w+)'$")
MISSING = re.compile(r'^Key "(?P<name>[\w.]+)" not found in namespace\.$')
EXPECTED = re.compile(r"^Expected (?:a |an )?(?P<kind>.+?)(?:\. Got value: (?P<value>.*))?$")
TRIED = re.compile(r"^Expected a <class '(?:\w+\.)*(?P<kind>(?!NoneType)\w+)'>$")  # one of several that would do
NOISE = (
    "Does not validate against any",
    "Problem with given class_path",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
)


class ArgumentParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are this package's."""

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parses; `null` reaches an option of a class as what it is.

        jsonargparse (4.53.0) parses `--model.lora.bias=null`, and hands what it found on to the parser of the class as
        text: `--lora.bias=None`, where None is a word like any other.
        """
        if args is None:
            args = [word for word in sys.argv[1:] if word != DEBUG]
        if getattr(self, "_inner_parser", False):  # of a class
            args = [re.sub(r"^(--[\w.]+)=None$", r"\1=null", word) for word in args]
        return super().parse_args(args, *more, **options)

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
    lines = message.splitlines()
    kinds = [found["kind"] for line in lines if (found := TRIED.match(line.strip().removeprefix("- ")))]
    for line in lines:
        indent, text = len(line) - len(line.lstrip()), line.strip().removeprefix("- ")
        key = PARSER_KEY.match(text)
        if key:
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key["key"])]
            text = key["rest"]
        if not text or text.startswith(NOISE):
            continue
        where = ".".join(name for _, name in path)
        if len(kinds) > 1 and TRIED.match(text):
            return f"{where or 'the configuration'} must be a value of type {' or '.join(dict.fromkeys(kinds))}."
        return _sentence(where, text)
    return " ".join(message.split())


def _sentence(path: str, text: str) -> str:
    for pattern, word in WORDINGS:
        if found := pattern.match(text):
            return word(path, found)
    found = OWN_SENTENCE.match(text)  # a nested class's parser has explained already
    if found and path and not text.startswith(("model.", "data.", "trainer.")):
        inner = "" if found["where"] == "the configuration" else f".{found['where']}"
        return f"{path}{inner}{found['rest']}"
    return text if found or not path else f"{path}: {text}"


def _no_option(path: str, found: re.Match[str]) -> str:
    name = found["key"] or found["option"] or found["word"]
    where = ".".join(filter(None, (path, found["group"]))) or "the configuration"
    names, first = _option_names(), name.partition(".")[0]
    if where == "the configuration" and first not in names:
        return f"{where} has no option {name!r}{_suggest(first, names)}"
    return f"{where} has no option {name!r}{_where_it_belongs(name)}"


def _required(_path: str, found: re.Match[str]) -> str:
    return f"{found['names']} is missing; give it, as the files in configs/ do."


def _no_class(path: str, found: re.Match[str]) -> str:
    wanted = "the options by name" if found["base"].endswith("Settings") else f"a class_path of a {found['base']}"
    if found["value"]:
        return f"{path} is {found['value'][:60]}, but {wanted} is needed."
    return f"{path} must be {wanted}, with its init_args."


def _no_options(path: str, found: re.Match[str]) -> str:
    value = f"a {found['kind']}" if found["kind"] else repr(found["value"])
    group = f"{path or 'model'} has a group of options that" if found["kind"] else path
    return f"{group} is {value}, but options by name are needed; see `lora-lightning fit --help`."


def _no_argument(_path: str, found: re.Match[str]) -> str:
    return f"{found['cls']} has no option {found['name']!r}{_suggest(found['name'], _option_names())}"


def _missing(_path: str, found: re.Match[str]) -> str:
    return f"{found['name']} is missing; give {found['name'].partition('.')[0]} its options by name."


def _unknown_class(path: str, found: re.Match[str]) -> str:
    names = [cls.__name__ for cls in CLASSES]
    return f"{path or 'the configuration'}: there is no class {found['name'][:60]!r}{_suggest(found['name'], names)}"


def _of_another_type(path: str, found: re.Match[str]) -> str:
    where = path or "the configuration"
    if found["value"] is None:
        return f"{where} must be {_kind(found['kind'])}."
    return f"{where} is {found['value'].strip()!r}, but {_kind(found['kind'])} is needed."


WORDINGS: tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str]], str]], ...] = (  # the first that fits counts
    (NOT_ACCEPTED, _no_option),
    (REQUIRED, _required),
    (NO_CLASS, _no_class),
    (NO_OPTIONS, _no_options),
    (NO_ARGUMENT, _no_argument),
    (MISSING, _missing),
    (IMPORT_PATH, _unknown_class),
    (EXPECTED, _of_another_type),
)


def _kind(kind: str) -> str:
    if literal := re.search(r"Literal\[(?P<values>.+)\]", kind):
        return f"one of {literal['values']}" if "," in literal["values"] else literal["values"]
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"a value of type \1", kind)


def _where_it_belongs(name: str) -> str:
    last = name.rsplit(".", 1)[-1]
    owners = [cls.__name__ for cls in OWNERS if last in inspect.signature(cls).parameters]
    if not owners:
        return _suggest(name, _option_names())
    if len(owners) > FEW:
        return ", which another class has; `lora-lightning fit --help` lists them."
    return f"; it is one of {', '.join(owners)}."


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
    names += ["class_path", "init_args", "ckpt_path", "test_after_fit", "resume", "trust_remote_code"]
    for cls in [*CLASSES, Trainer]:
        names += [name for name in inspect.signature(cls).parameters if name not in ("self", "args", "kwargs")]
    return names
