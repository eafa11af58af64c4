"""The options of a comparison: those that say where validation rows come from, and where a run's base model is now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_lightning.configuration.yaml_files import check_config_file
from lora_lightning.errors import ConfigurationError

CONFIG_OPTION = "--config="
BACKBONE_OPTION = "--model.backbone="


def keep_data_options(arguments: Sequence[str]) -> list[str]:
    """Reduces configs to their `data`, and refuses all other options.

    Args:
        arguments: `--config=...` with a file or YAML, and `--data...=...`.

    Returns:
        The same with the `data` of each config only.

    Raises:
        ConfigurationError: If an option is not about data, or if a config has no data.
    """
    words = []
    for word in arguments:
        if word.startswith(CONFIG_OPTION):
            words.append(f"{CONFIG_OPTION}{yaml.safe_dump({'data': _data_of(word.removeprefix(CONFIG_OPTION))})}")
        elif word.startswith(("--data.", "--data=")):
            words.append(word)
        else:
            msg = (
                f"{word.partition('=')[0]} is not an option here; besides --config, there are --data.* options, and "
                "--model.backbone for a run."
            )
            raise ConfigurationError(msg)
    return words


def keep_run_options(arguments: Sequence[str]) -> list[str]:
    """Like `keep_data_options`, and keeps `--model.backbone`, since the base of a run may have moved.

    Args:
        arguments: `--config=...`, `--data...=...` and `--model.backbone=...`.

    Returns:
        The same with the `data` of each config only.

    Raises:
        ConfigurationError: If there is another option, or if a config has no data.
    """
    backbone = [word for word in arguments if word.startswith(BACKBONE_OPTION)]
    return [*keep_data_options([word for word in arguments if word not in backbone]), *backbone]


def check_data_module(words: Sequence[str]) -> None:
    """Refuses options of a data module that is not named; a run has its own, an adapter has none.

    Args:
        words: From `keep_data_options`.

    Raises:
        ConfigurationError: If neither a config nor `--data` names the class.
    """
    if not any(word.startswith((CONFIG_OPTION, "--data=")) for word in words):
        msg = (
            f"{words[0].partition('=')[0]} needs the data module that it is an option of; give --data CLASS, such as "
            "Clinc150DataModule, or --config with a YAML file that has `data:`."
        )
        raise ConfigurationError(msg)


def _data_of(config: str) -> Any:
    path = Path(config) if "\n" not in config else None
    if path is not None:
        check_config_file(path)
    content = yaml.safe_load(config if path is None else path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or not content.get("data"):
        msg = f"--config {config.strip()[:200]} has no data; write `data:` with the class_path of a data module."
        raise ConfigurationError(msg)
    return content["data"]
