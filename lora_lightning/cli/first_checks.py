"""What can be refused before anything heavy is imported: a command without options, a config that does not exist."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_lightning.configuration.shipped_configs import check_config_paths, copy_hint
from lora_lightning.errors import ConfigurationError

QUICKSTART = "configs/quickstart.yaml"
# Commands whose subcommands read a file: what it is, and those subcommands.
READERS = {"study": ("study", ("run", "slurm")), "diagnose": ("diagnosis", ("run",))}
OF_A_RUN = "--config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt"


def check_first(command: str, words: Sequence[str]) -> None:
    """Refuses mistakes that need no parser.

    Args:
        command: The name of the command.
        words: Its options.

    Raises:
        ConfigurationError: If the command needs options and has none, or if a config does not exist.
    """
    if command == "fit" and not words:
        msg = f"fit needs a config; start with {quickstart_command()}, and `lora-lightning configs` lists all others."
        raise ConfigurationError(msg)
    if command in {"validate", "test", "predict"} and not words:
        msg = f"{command} needs a run and its checkpoint: `lora-lightning {command} {OF_A_RUN}`"
        raise ConfigurationError(msg)
    check_config_paths(values_of(words, "--config", "-c"))
    check_config_paths(values_of(words, "--base"), "base config")
    if command in READERS:
        kind, subcommands = READERS[command]
        check_config_paths(own_files(words, subcommands), kind)


def values_of(words: Sequence[str], *names: str) -> Iterator[str]:
    """Yields the values of an option.

    Args:
        words: Of a command line.
        names: Spellings of the option.
    """
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in names and (equals or place + 1 < len(words)):
            yield value if equals else words[place + 1]


def own_files(words: Sequence[str], subcommands: Sequence[str]) -> list[str]:
    """Returns the file of a study or a diagnosis, if it follows the subcommand.

    Args:
        words: Of the command.
        subcommands: Those that read such a file.
    """
    return [word for word in words[1:2] if words[0] in subcommands and not word.startswith("-")]


def quickstart_command() -> str:
    """Returns the command that trains the quickstart from the current folder."""
    fit = "lora-lightning fit --config"
    if Path(QUICKSTART).is_file():
        return f"`{fit} {QUICKSTART}`"
    return f"{copy_hint('quickstart')} and `{fit} quickstart.yaml`"
