"""Which function runs which command."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lora_lightning.cli import evaluate, fit, predict
from lora_lightning.errors import DEBUG
from lora_lightning.training.commands import explain_errors

COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "fit": fit.run,
    "validate": evaluate.run_validate,
    "test": evaluate.run_test,
    "predict": predict.run,
}


def run(words: Sequence[str]) -> Any:
    """Runs one command.

    Args:
        words: The command and its options.

    Returns:
        What ran: the trainer, the task and the data module are its attributes.

    Raises:
        LoraLightningError: If the input is wrong.
    """
    sys.argv[1:] = list(words)  # Lightning starts further processes with them
    with explain_errors():
        return COMMANDS[words[0]]([word for word in words[1:] if word != DEBUG])
