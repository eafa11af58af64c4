"""The parser of commands that do not train."""

import argparse
from typing import NoReturn

from lora_lightning.errors import ConfigurationError


class SentenceParser(argparse.ArgumentParser):
    """A parser whose errors are sentences of the program, like those of every other command."""

    def error(self, message: str) -> NoReturn:
        """Raises the error that is reported in one line.

        Args:
            message: What is wrong.

        Raises:
            ConfigurationError: Always.
        """
        msg = f"{message}; see {self.prog} --help"
        raise ConfigurationError(msg)
