"""Checks a YAML before the parser reads it: what is no YAML, or no config by its form, is named by file and line.

The parser's own loader takes the last of two equal keys without a word, spells out every alias, and names neither the
file nor the line of a mistake.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_lightning.configuration.shipped_configs import check_config_paths, is_config_text
from lora_lightning.errors import ConfigurationError

OPTIONS = ("--config", "-c")
GROUPS = ("trainer", "checkpoint", "early_stopping", "predictions")  # their options by name
CLASSES = ("model", "data")
OF_A_CLASS = {"class_path", "init_args", "dict_kwargs"}
DEEPEST = 30  # a class in a list in a class needs about ten
MOST_ENTRIES = 100_000  # aliases spelt out: nine lists of nine aliases each are a billion entries
TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge")
}
MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"


def check_config_files(words: Sequence[str]) -> None:
    """Checks every file that `--config` names.

    Args:
        words: The command line. What is the text of a config is left to the parser.

    Raises:
        ConfigurationError: If a file does not exist, is no YAML, or cannot be a config whatever its options are.
    """
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in OPTIONS:
            name = value if equals else "".join(words[place + 1 : place + 2])
            check_config_paths([name])
            if not is_config_text(name) and Path(name).is_file():
                check_config_file(Path(name))


def check_config_file(path: Path) -> None:
    """Checks one file.

    Args:
        path: The YAML.

    Raises:
        ConfigurationError: Names the file, the line where there is one, and what is needed.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        msg = f"the config {path} cannot be read ({error.strerror}); check the path and its permissions."
        raise ConfigurationError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"the config {path} cannot be read as text in UTF-8 ({error}); save it in that encoding."
        raise ConfigurationError(msg) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_nodes(root, str(path))
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = " ".join(filter(None, (error.context, error.problem)))
        msg = f"the config {path}{where} is not YAML: {problem}."
        raise ConfigurationError(msg) from error
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML forbids; a date that there is not
        msg = f"the config {path} is not YAML: {' '.join(str(error).split())}."
        raise ConfigurationError(msg) from error
    except RecursionError as error:
        msg = f"the config {path} is nested deeper than {DEEPEST} levels, but no option is; fix its brackets."
        raise ConfigurationError(msg) from error
    check_config_form(content, str(path))


def _check_nodes(root: yaml.Node | None, name: str) -> None:
    """Refuses what is YAML and no plain data: repeated keys, keys that are no texts, tags, endless aliases."""
    entries = 0
    waiting: list[tuple[yaml.Node, tuple[yaml.Node, ...]]] = [] if root is None else [(root, ())]
    while waiting:
        node, holders = waiting.pop()
        entries += 1
        where = f"the config {name}, line {node.start_mark.line + 1}"
        if node in holders or entries > MOST_ENTRIES:
            msg = f"{where}: an alias (*) leads back to itself, or to {MOST_ENTRIES} entries and more; write it out."
            raise ConfigurationError(msg)
        if len(holders) > DEEPEST:
            msg = f"{where}: nested deeper than {DEEPEST} levels, but no option is; fix its brackets or indentation."
            raise ConfigurationError(msg)
        if node.tag not in TAGS:
            msg = f"{where} has the tag {node.tag!r}; a config contains only plain values, so leave the tag out."
            raise ConfigurationError(msg)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where.rpartition(",")[0])
        waiting += [(child, (*holders, node)) for child in _children(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (value for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.MappingNode, name: str) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in {TEXT, MERGE} or not key.value:
            found = "a list or a mapping" if not isinstance(key, yaml.ScalarNode) else repr(key.value)
            msg = f"{name}, line {line}: the name of an option is {found}, but a word is needed; fix or quote it."
            raise ConfigurationError(msg)
        if key.value in seen:
            msg = f"{name}, line {line}: {key.value!r} is a duplicate of line {seen[key.value]}; leave one of both out."
            raise ConfigurationError(msg)
        seen[key.value] = line


def check_config_form(content: Any, name: str) -> None:
    """Refuses what holds no options by name where they are needed, before the parser words it as it can.

    Args:
        content: Of the config.
        name: Of the config, for messages.

    Raises:
        ConfigurationError: If it cannot be a config.
    """
    if not isinstance(content, dict):
        msg = f"the config {name} contains {_kind(content)}, but named options are needed, such as `model:`."
        raise ConfigurationError(msg)
    for group in GROUPS:
        if group in content and not isinstance(content[group], dict):
            msg = f"{group} in {name} is {_short(content[group])}, but named options are needed; indent them below."
            raise ConfigurationError(msg)
    for key in CLASSES:
        if key in content and not isinstance(content[key], dict | str):
            msg = f"{key} in {name} is {_short(content[key])}, but a class_path with its init_args is needed."
            raise ConfigurationError(msg)
    _check_classes(content, (), name)


def _check_classes(content: Any, place: tuple[str, ...], name: str) -> None:
    if isinstance(content, list):
        for number, entry in enumerate(content, start=1):
            _check_classes(entry, (*place, str(number)), name)
    if not isinstance(content, dict):
        return
    where = ".".join(place)
    if "class_path" in content:
        path, options = content["class_path"], content.get("init_args", {})
        if not isinstance(path, str):
            msg = f"{where}.class_path in {name} is {_short(path)}, but the name of a class is needed."
            raise ConfigurationError(msg)
        if not isinstance(options, dict):
            msg = f"{where}.init_args in {name} is {_short(options)}, but named options of {path} are needed."
            raise ConfigurationError(msg)
        if others := sorted(content.keys() - OF_A_CLASS):
            msg = (
                f"{where} in {name} has {others[0]!r} beside class_path and init_args; indent the options of {path} "
                "below init_args."
            )
            raise ConfigurationError(msg)
    for key, value in content.items():
        _check_classes(value, (*place, key), name)


def _kind(content: Any) -> str:
    if content is None:
        return "nothing"
    return "a list" if isinstance(content, list) else _short(content)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004  # enough to recognize it
