"""The command-line parser: a wrong option becomes one sentence with a remedy."""

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lora_lightning.errors import ConfigurationError


class ArgumentParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are this package's."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Raises instead of printing the usage."""
        raise ConfigurationError(message)
