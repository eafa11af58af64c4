"""From a command's words to what it needs, and from what went wrong to one sentence."""

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
from lora_lightning.training.refusals import explaining_errors, option_error, run_error


def prepare(command: Command, words: Sequence[str]) -> LoraLightningCLI:
    """Parses a command's words and makes its trainer, task and data module; no weights load yet.

    Args:
        command: Which.
        words: Its options, as on a command line.

    Returns:
        What the command needs.

    Raises:
        LoraLightningError: If an option, a file or a checkpoint is wrong.
    """
    silence_other_packages()
    with explaining_errors(option_error):
        return _prepare(command, words)


def _prepare(command: Command, words: Sequence[str]) -> LoraLightningCLI:
    for word in words:
        if word.startswith(("--data.backbone", "--data.init_args.backbone")):
            msg = "data.backbone always follows the model's; set --model.backbone instead."
            raise ConfigurationError(msg)
    check_config_files(words)
    return LoraLightningCLI(command, with_current_names(words))


@contextmanager
def explain_errors() -> Iterator[None]:
    """Turns what other packages raise over a user's mistake into one sentence of ours.

    Raises:
        LoraLightningError: In place of theirs.
        KeyboardInterrupt: In place of Lightning's `SystemExit` after a Ctrl-C.
    """
    try:
        with explaining_errors(run_error):
            yield
    except SystemExit as error:
        if error.code == 1 and is_ending_after_interrupt():
            raise KeyboardInterrupt from None
        raise


def silence_other_packages() -> None:
    """Silences what other packages say at each start and a user cannot act on."""
    # The last misses a kernel that would reorder 4-bit weights, which `keep_4bit_weights_in_order` prevents.
    for name in ("lightning.pytorch", "lightning.fabric", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        # CSVLogger's: the folder holds the run's config by then, and a former table stays.
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
