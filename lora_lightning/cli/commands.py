"""Runs a command by its name. Each imports only what it needs, so that a command without training starts quickly."""

import sys
from collections.abc import Sequence
from typing import Any

from lora_lightning.cli.first_checks import check_first
from lora_lightning.errors import DEBUG


def run_command(arguments: Sequence[str]) -> Any:
    """Runs one command.

    Args:
        arguments: The command and its options.

    Returns:
        An object with the attributes `trainer` and `datamodule`, and the task as `model` (`fit`: `task`); for `study`,
        `merge`, `compress`, `allocate` and `plan` their results; for `configs` the files.

    Raises:
        LoraLightningError: If the input is wrong.
    """
    sys.argv[1:] = list(arguments)  # Lightning starts other processes with the same arguments
    command, *words = [word for word in arguments if word != DEBUG]
    check_first(command, words)
    if command == "configs":
        from lora_lightning.cli.configs import run_configs  # noqa: PLC0415

        return run_configs(words)
    if command == "study":
        from lora_lightning.cli.study import run_study  # noqa: PLC0415

        return run_study(words)
    if command == "merge":
        from lora_lightning.cli.merge import run_merge  # noqa: PLC0415

        return run_merge(words)
    if command == "compress":
        from lora_lightning.cli.compress import run_compress  # noqa: PLC0415

        return run_compress(words)
    if command == "plan":
        from lora_lightning.cli.plan import run_plan  # noqa: PLC0415

        return run_plan(words)
    if command == "allocate":
        from lora_lightning.cli.allocate import run_allocate  # noqa: PLC0415

        return run_allocate(words)
    return _run_with_model(command, words)


def _run_with_model(command: str, words: Sequence[str]) -> Any:
    from lora_lightning.cli import evaluate, fit, predict  # noqa: PLC0415
    from lora_lightning.training.commands import explain_errors  # noqa: PLC0415

    run = {
        "fit": fit.run_fit,
        "validate": evaluate.run_validate,
        "test": evaluate.run_test,
        "predict": predict.run_predict,
    }[command]
    with explain_errors():
        return run(words)
