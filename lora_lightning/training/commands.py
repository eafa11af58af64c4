"""Prepares what a command needs, and turns errors of other packages into one sentence."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lora_lightning.compat.lightning import is_ending_after_interrupt
from lora_lightning.configuration.former_names import with_current_names
from lora_lightning.configuration.yaml_files import check_config_files
from lora_lightning.errors import ConfigurationError
from lora_lightning.training.lightning_cli import Command, LoraLightningCLI
from lora_lightning.training.user_errors import explain_option_error, explain_run_error, replace_errors


def prepare_command(
    command: Command, arguments: Sequence[str], cli_class: type[LoraLightningCLI] = LoraLightningCLI
) -> LoraLightningCLI:
    """Parses the arguments of a command and creates its trainer, task and data module. No weights are loaded yet.

    Args:
        command: The name of the command.
        arguments: Its options, as on a command line.
        cli_class: What parses them.

    Returns:
        The trainer, task, data module and options.

    Raises:
        LoraLightningError: If an option, a file or a checkpoint is wrong.
    """
    silence_other_packages()
    with replace_errors(explain_option_error):
        return _parse_command(command, arguments, cli_class)


def _parse_command(command: Command, arguments: Sequence[str], cli_class: type[LoraLightningCLI]) -> LoraLightningCLI:
    for word in arguments:
        if word.startswith(("--data.backbone", "--data.init_args.backbone")):
            msg = "data.backbone is always the same as model.backbone; set --model.backbone instead."
            raise ConfigurationError(msg)
    check_config_files(arguments)
    return cli_class(command, with_current_names(arguments))


@contextmanager
def explain_errors() -> Iterator[None]:
    """Replaces the errors that other packages raise about a user's mistake by one sentence.

    Raises:
        LoraLightningError: In place of an error of another package.
        KeyboardInterrupt: In place of Lightning's `SystemExit` after Ctrl-C.
    """
    try:
        with replace_errors(explain_run_error):
            yield
    except SystemExit as error:
        if error.code == 1 and is_ending_after_interrupt():
            raise KeyboardInterrupt from None
        raise


def silence_other_packages() -> None:
    """Silences messages that other packages print at every start and that need no action."""
    # The last one misses a kernel that reorders 4-bit weights, which `keep_4bit_weights_in_order` prevents anyway.
    for name in ("lightning.pytorch", "lightning.fabric", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        # Of CSVLogger: at that point the folder contains the run's config, and an earlier table is kept.
        r"Experiment logs directory .* exists and is not empty.*",
        r".*number of training batches .* is smaller than the logging.*",
        r".*LeafSpec.*",
        r".*your dataloader is not resumable.*",  # the data module is
        r"Be aware that when using `ckpt_path`, callbacks used to create.*",
        r"Metric .* will save all targets and predictions in the buffer.*",
        r".*Couldn't infer the batch indices.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing.*", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
