"""Undocumented parts of jsonargparse 4.53: its messages, its parsers of a class's options, the types of options.

jsonargparse reports a wrong option as a list of every type that it tried, over many lines, with the full value. One
line of it says what is wrong; the patterns here find that line and its parts.
"""

import re
import types
import typing
from functools import reduce
from operator import or_
from typing import Any

from jsonargparse import ArgumentParser

# The option that the following, deeper indented lines are about.
PARSER_KEY = re.compile(r'^(?:- )?Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)$')
NOT_ACCEPTED = re.compile(
    r"^(?:(?:Option|Key|Group) '(?P<key>[^']+)' is not (?:accepted|expected)"
    r"|(?:Subcommand '\w+'|Group '(?P<group>[\w.]+)') does not accept option '(?P<option>[^']+)'"
    r"|[Uu]nrecognized arguments?: (?:--)?(?P<word>[^\s=]+))"
)
IMPORT_PATH = re.compile(
    r"^(?:Expected a dot import path string: |No module named '?|Expected a path but )(?P<name>.*?)"
    r"(?:'|: .*| either not accessible or invalid)?$"
)
REQUIRED = re.compile(r"^the following arguments are required: (?:\w+\.)?(?P<names>.+)$")
NO_CLASS = re.compile(r"^Not a valid subclass of (?P<base>\w+)(?:\. Got value: (?P<value>.*))?$")
NOT_A_SUBCLASS = re.compile(r"^Import path does not correspond to a subclass of (?P<base>\w+)$")
NO_OPTIONS = re.compile(r"^Unable to load config '?(?P<value>.*?)'?$|^.*must be a mapping, not (?P<kind>\w+)$")
NO_ARGUMENT = re.compile(r"^(?P<cls>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<name>\w+)'$")
MISSING = re.compile(r'^Key "(?P<name>[\w.]+)" not found in namespace\.$')
EXPECTED = re.compile(r"^Expected (?:a |an )?(?P<kind>.+?)(?:\. Got value: (?P<value>.*))?$")
# One of several types that would do.
TRIED = re.compile(r"^Expected a <class '(?:\w+\.)*(?P<kind>(?!NoneType)\w+)'>$")
# Lines that add nothing.
NOISE = (
    "Does not validate against any",
    "Problem with given class_path",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
)
# The value, or only the class path, that a message is about.
CLASS_PATH_VALUE = re.compile(
    r"^(?:Problem with given class_path|Expected a path but|Expected a dot import path string:|Given value:)\s+"
    r"(?P<value>.+?)(?: either not accessible or invalid|:)?$"
)
OPTION_TYPE = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
LITERAL_TYPE = re.compile(r"Literal\[(?P<values>.+)\]")


def is_parser_of_class(parser: ArgumentParser) -> bool:
    """Returns whether jsonargparse made a parser for the options of one class, inside the program's own parser.

    The options reach it as text once more; in `--lora.bias=None`, None stands for null.

    Args:
        parser: Any.
    """
    return bool(getattr(parser, "_inner_parser", False))


def try_int_before_float(options: dict[str, Any]) -> None:
    """Puts `int` before `float` where the type of an option is a union of both.

    Python gives `Union[int, float]` and `Union[float, int]` out of one cache, so that the order in the source may not
    be the one that arrives. With `float` first, `--trainer.limit_train_batches=1` would be 1.0: not one batch, but all.

    Args:
        options: Of `add_argument`; for an option of a class, jsonargparse has already put its type into the action.
    """
    if "type" in options:
        options["type"] = int_before_float(options["type"])
    action: Any = options.get("action")
    if hasattr(action, "_typehint"):
        action._typehint = int_before_float(action._typehint)


def int_before_float(kind: Any) -> Any:
    """Returns a type, with `int` before `float` if it is a union.

    Args:
        kind: A type.
    """
    kinds = list(typing.get_args(kind))
    if typing.get_origin(kind) not in (typing.Union, types.UnionType) or not {int, float} <= set(kinds):
        return kind
    if kinds.index(int) < kinds.index(float):
        return kind
    kinds.remove(int)
    kinds.insert(kinds.index(float), int)
    return reduce(or_, kinds)  # not `Union[...]`, which has the cache
