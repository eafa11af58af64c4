"""Runs a command by its name. Each imports only what it needs, so that a command without training starts quickly."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, cast

from lora_lightning.cli.first_checks import check_first
from lora_lightning.cli.fit_help import HELP, help_text
from lora_lightning.errors import DEBUG, ExitStatus
from lora_lightning.runs.status_line import show_status

TRAINING_STUDIES = ("run", "work")  # subcommands of `study`
WITH_MODEL = {"fit": "fit", "validate": "evaluate", "test": "evaluate", "predict": "predict"}  # their modules


def run_command(arguments: Sequence[str]) -> Any:
    """Runs one command.

    Args:
        arguments: The command and its options.

    Returns:
        An object with the attributes `trainer` and `datamodule`, and the task as `model` (`fit`: `task`); for `study`,
        `diagnose`, `merge`, `compress`, `allocate` and `plan` their results; for `configs` the files.

    Raises:
        LoraLightningError: If the input is wrong.
    """
    sys.argv[1:] = list(arguments)  # Lightning starts other processes with the same arguments
    command, *words = [word for word in arguments if word != DEBUG]
    if command in WITH_MODEL and (text := help_text(command, words)) is not None:
        print(text)
        raise SystemExit(ExitStatus.DONE)
    check_first(command, words)
    if imports_models(command, words):
        show_status("importing PyTorch and transformers")
    if command not in WITH_MODEL:
        return _function(command, command)(words)
    run = _function(WITH_MODEL[command], command)
    from lora_lightning.training.commands import explain_errors  # noqa: PLC0415

    with explain_errors():
        return run(words)


def imports_models(command: str, words: Sequence[str]) -> bool:
    """Returns whether a command imports PyTorch and transformers, which takes seconds.

    Args:
        command: Its name.
        words: Its options.
    """
    if not words or {*HELP} & {*words}:
        return False
    return command not in {"configs", "study"} or (command == "study" and words[0] in TRAINING_STUDIES)


def _function(module: str, command: str) -> Callable[[Sequence[str]], Any]:
    run = getattr(import_module(f"lora_lightning.cli.{module}"), f"run_{command}")
    return cast("Callable[[Sequence[str]], Any]", run)
