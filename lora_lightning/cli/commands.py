"""Maps each command to the function that runs it."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lora_lightning.cli import evaluate, fit, predict
from lora_lightning.errors import DEBUG
from lora_lightning.training.commands import explain_errors

COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "fit": fit.run_fit,
    "validate": evaluate.run_validate,
    "test": evaluate.run_test,
    "predict": predict.run_predict,
}


def run_command(arguments: Sequence[str]) -> Any:
    """Runs one command.

    Args:
        arguments: The command and its options.

    Returns:
        An object with the attributes `trainer` and `datamodule`, and the task as `model` (`fit`: `task`).

    Raises:
        LoraLightningError: If the input is wrong.
    """
    sys.argv[1:] = list(arguments)  # Lightning starts other processes with the same arguments
    with explain_errors():
        return COMMANDS[arguments[0]]([word for word in arguments[1:] if word != DEBUG])
