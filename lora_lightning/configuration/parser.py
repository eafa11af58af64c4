"""The command-line parser: a wrong option becomes one sentence with a remedy."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lora_lightning import callbacks, datamodules, tasks
from lora_lightning.compat.jsonargparse import (
    CLASS_PATH_VALUE,
    EXPECTED,
    IMPORT_PATH,
    LITERAL_TYPE,
    MISSING,
    NO_ARGUMENT,
    NO_CLASS,
    NO_OPTIONS,
    NOISE,
    NOT_A_SUBCLASS,
    NOT_ACCEPTED,
    OPTION_TYPE,
    PARSER_KEY,
    REQUIRED,
    TRIED,
    is_parser_of_class,
    try_int_before_float,
)
from lora_lightning.configuration.class_paths import class_path_problem, class_paths_in
from lora_lightning.configuration.schema_file import option_names
from lora_lightning.errors import DEBUG, ConfigurationError, few_names
from lora_lightning.lora.config import LoraSettings

CLASSES = [getattr(module, name) for module in (tasks, datamodules, callbacks) for name in module.__all__]
CLASSES_WITH_OPTIONS = [*CLASSES, LoraSettings, Trainer]
# What others call our options, and no spelling is close enough to find.
OTHER_NAMES = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "lr": "learning_rate",
    "warmup_ratio": "warmup_share",
    "epochs": "max_epochs",
    "num_train_epochs": "max_epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "max_grad_norm": "gradient_clip_val",
    "model_name_or_path": "backbone",
    "seed": "seed_everything",
}
MOST_NAMED = 3  # classes in one sentence
NEAR = 0.6  # similarity of what is probably misspelt

OWN_SENTENCE = re.compile(r"^(?P<where>the configuration|[\w.]+)(?P<rest>:? (?:is|has|must be|there is) .*)$")
# What is suggested is what was given, and the class that was chosen lacks it.
OPTION_OF_ANOTHER_CLASS = re.compile(
    r"^(?P<path>[\w.]+) has no option '(?P<name>[\w.]+)'; did you mean (?:--)?(?P=path)\.(?P=name)\?$"
)
OPTION = re.compile(r"--?[A-Za-z][^\s=]*")


class ArgumentParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are those of this package."""

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parses; `null` and negative numbers reach every option as what they are.

        jsonargparse (4.53.0) parses `--model.lora.bias=null`, and passes it on to the parser of the class as text:
        `--lora.bias=None`, in which None would be a word like any other.
        """
        words = [word for word in (sys.argv[1:] if args is None else args) if word != DEBUG]
        if is_parser_of_class(self):
            words = [re.sub(r"^(--[\w.]+)=None$", r"\1=null", word) for word in words]
        return super().parse_args(join_negative_numbers(words), *more, **options)

    def add_argument(self, *args: Any, **options: Any) -> Any:
        """Adds an option, and has its values tried as `int` before `float`."""
        try_int_before_float(options)  # jsonargparse gives this method to the parser's groups, too
        return super().add_argument(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises one sentence instead of printing the usage and every type that was tried."""
        raise ConfigurationError(explain_parser_message(message)) from ex


def join_negative_numbers(words: Sequence[str]) -> list[str]:
    """Attaches negative numbers to their options: argparse takes `-1e-3` and `-inf` for options of their own.

    Args:
        words: For example `["--x", "-1e-3"]`.

    Returns:
        For example `["--x=-1e-3"]`.
    """
    joined: list[str] = []
    for word in words:
        if joined and OPTION.fullmatch(joined[-1]) and _is_negative_number(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _is_negative_number(word: str) -> bool:
    if not word.startswith("-"):
        return False
    try:
        float(word)
    except ValueError:
        return False
    return True


def explain_parser_message(message: str) -> str:
    """Shortens a message of jsonargparse.

    Args:
        message: Often over many lines.

    Returns:
        One sentence: what was wrong, what is allowed, a similar name. A message of unknown form is put on one line.
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
        if problem := _class_problem(lines):
            return f"{where or 'the configuration'}: {problem}."
        if len(kinds) > 1 and TRIED.match(text):
            return f"{where or 'the configuration'} must be a value of type {' or '.join(dict.fromkeys(kinds))}."
        return _sentence(where, text)
    return " ".join(message.split())


def _class_problem(lines: Sequence[str]) -> str | None:
    """Explains what is wrong with a class that a message is about, if it is the class and not its options."""
    texts = [line.strip().removeprefix("- ") for line in lines]
    bases = [found["base"] for text in texts if (found := NOT_A_SUBCLASS.match(text))]
    values = [found["value"] for text in texts if (found := CLASS_PATH_VALUE.match(text))]
    problems = (class_path_problem(class_path, bases) for value in values for class_path in class_paths_in(value))
    return next(filter(None, problems), None)


def _sentence(path: str, text: str) -> str:
    for pattern, word in WORDINGS:
        if found := pattern.match(text):
            return word(path, found)
    found = OWN_SENTENCE.match(text)  # the parser of a class has explained it already
    if found and path and not text.startswith(("model.", "data.", "trainer.")):
        inner = "" if found["where"] == "the configuration" else f".{found['where']}"
        sentence = f"{path}{inner}{found['rest']}"
        if other := OPTION_OF_ANOTHER_CLASS.match(sentence):
            owners = [cls.__name__ for cls in CLASSES if other["name"] in inspect.signature(cls).parameters]
            return (
                f"{path} has no option {other['name']!r} with this class_path; it is an option of {few_names(owners)}."
            )
        return sentence
    return text if found or not path else f"{path}: {text}"


def _no_option(path: str, found: re.Match[str]) -> str:
    name = found["key"] or found["option"] or found["word"]
    where = ".".join(filter(None, (path, found["group"]))) or "the configuration"
    if where == "the configuration" and (similar := _similar_options(name)):
        dashes = "--" if found["word"] else ""
        return f"{where} has no option {name!r}; did you mean {' or '.join(dashes + option for option in similar)}?"
    if name in OTHER_NAMES:
        return f"{where} has no option {name!r}; did you mean {OTHER_NAMES[name]!r}?"
    return f"{where} has no option {name!r}{_where_it_belongs(name)}"


def _similar_options(name: str) -> list[str]:
    """Options in full that a wrong one may mean; none for one that only the chosen class lacks."""
    names = sorted(option_names())
    if name in names:
        return []
    last = name.rpartition(".")[2]
    lasts = {option.rpartition(".")[2] for option in names}
    wanted = [OTHER_NAMES[last]] if last in OTHER_NAMES else get_close_matches(last, lasts, n=2, cutoff=NEAR)
    wanted = [last] if last in lasts else wanted
    found = [[option for option in names if option.rpartition(".")[2] == each] for each in wanted]
    return [match for same in found for match in get_close_matches(name, same, n=1, cutoff=0)]


def _required(_path: str, found: re.Match[str]) -> str:
    return f"{found['names']} is missing; pass --config with a file such as configs/quickstart.yaml."


def _no_class(path: str, found: re.Match[str]) -> str:
    wanted = "the options by name" if found["base"].endswith("Settings") else f"a class_path of a {found['base']}"
    if found["value"]:
        return f"{path} is {found['value'][:60]}, but {wanted} is needed."
    return f"{path} must be {wanted}, with its init_args."


def _no_options(path: str, found: re.Match[str]) -> str:
    value = f"a {found['kind']}" if found["kind"] else repr(found["value"])
    group = f"{path or 'model'} has a group of options that" if found["kind"] else path
    return f"{group} is {value}, but named options are needed; see `lora-lightning fit --help`."


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


WORDINGS: tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str]], str]], ...] = (  # the first that matches counts
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
    if literal := LITERAL_TYPE.search(kind):
        return f"one of {literal['values']}" if "," in literal["values"] else literal["values"]
    return OPTION_TYPE.sub(r"a value of type \1", kind)


def _where_it_belongs(name: str) -> str:
    last = name.rsplit(".", 1)[-1]
    owners = [cls.__name__ for cls in CLASSES_WITH_OPTIONS if last in inspect.signature(cls).parameters]
    if not owners:
        return _suggest(name, _option_names())
    if len(owners) > MOST_NAMED:
        return ", which another class has; `lora-lightning fit --help` lists them."
    return f"; it is one of {', '.join(owners)}."


def _suggest(name: str, allowed: Iterable[str]) -> str:
    last = name.rsplit(".", 1)[-1]
    if last in OTHER_NAMES:
        return f"; did you mean {OTHER_NAMES[last]!r}?"
    close = get_close_matches(last, sorted(set(allowed)), n=2, cutoff=NEAR)
    if close:
        return f"; did you mean {' or '.join(repr(match) for match in close)}?"
    return "; `lora-lightning fit --help` lists every option."


def _option_names() -> set[str]:
    """Returns every part of the name of an option."""
    return {part for name in option_names() for part in name.split(".")} | {"class_path", "init_args"}
