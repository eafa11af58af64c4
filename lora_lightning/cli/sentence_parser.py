"""The parser of commands that do not train."""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lora_lightning.errors import ConfigurationError, suggest_names

ALIKE = 0.75  # 1 is the same name
CHOICE = re.compile(r"argument (?P<of>(SUB)?COMMAND): invalid choice: '(?P<given>.*)' \(choose from (?P<names>.*)\)")
OPTION = re.compile(r"^\s+(?:-\w, )?(--[\w-]+)", re.MULTILINE)  # as help lists them


class SentenceParser(argparse.ArgumentParser):
    """A parser whose errors are sentences of the program, like those of every other command.

    Attributes:
        takes_others: Whether unknown options are returned, because another parser reads them.
    """

    takes_others = False

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parses the options, as in `argparse`, also those of a subcommand.

        Args:
            args: Words of the command line.
            namespace: As in `argparse`.

        Returns:
            The options, and the words that are none.

        Raises:
            ConfigurationError: If there are such words, but no other parser reads them.
        """
        if self.takes_others:
            return super().parse_known_args(args, namespace)
        words = sys.argv[1:] if args is None else args
        try:
            options, unknown = super().parse_known_args(args, namespace)
        except ConfigurationError:
            self._refuse_misspelled(words)  # the more useful error: a misspelled option may be the one that is missing
            raise
        if unknown:
            self._refuse_misspelled(unknown)
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def _refuse_misspelled(self, words: Sequence[str]) -> None:
        names = OPTION.findall(self.format_help())
        for name in (word.partition("=")[0] for word in words if word.startswith("--")):
            close = get_close_matches(name, names, n=1, cutoff=ALIKE)
            if close and not any(own.startswith(name) for own in names):
                self.error(f"there is no option {name}; did you mean {close[0]}?")

    def error(self, message: str) -> NoReturn:
        """Raises the error that is reported in one line.

        Args:
            message: What is wrong.

        Raises:
            ConfigurationError: Always.
        """
        if (choice := CHOICE.fullmatch(message)) is not None:
            names = [name.strip(" '") for name in choice["names"].split(",")]  # Python 3.13 quotes none
            message = f"there is no {choice['of'].lower()} {choice['given']}; {suggest_names(choice['given'], names)}"
        msg = f"{message.removesuffix('.')}{' ' if message.endswith('?') else '; '}see {self.prog} --help"
        raise ConfigurationError(msg)
