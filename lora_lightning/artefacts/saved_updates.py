"""The updates in an exported adapter, read without its base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG, read_json_file
from lora_lightning.backbones.adapter_weights import read_adapter_weights
from lora_lightning.compat.peft import first_matching_pattern
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import AdapterDelta
from lora_lightning.lora.parameter_names import is_embedding_factor, is_factor, is_factor_b, saved_module_name


def saved_updates(folder: Path) -> list[AdapterDelta]:
    """Reads the updates of an exported adapter.

    Args:
        folder: The PEFT folder.

    Returns:
        dW of each linear layer, by name, numbers as such: layer 2 before layer 10. The file's own order is another one.

    Raises:
        CheckpointError: If the file is missing or damaged.
        ConfigurationError: If the adapter is on embeddings or experts.
    """
    config = read_json_file(folder / ADAPTER_CONFIG)
    if config.get("target_parameters"):
        msg = f"{folder} adapts experts ({', '.join(config['target_parameters'])}), whose updates this command does "
        msg += "not read; adapt linear layers alone."
        raise ConfigurationError(msg)
    factors: dict[str, dict[bool, Tensor]] = {}
    for name, weight in read_adapter_weights(folder).items():
        if is_embedding_factor(name):
            msg = f"{folder} adapts embeddings, whose updates this command does not read; adapt linear layers alone."
            raise ConfigurationError(msg)
        if is_factor(name):
            factors.setdefault(saved_module_name(name), {})[is_factor_b(name)] = weight
    return [
        AdapterDelta(name, pair[False].float(), pair[True].float(), _saved_scaling(config, name, len(pair[False])))
        for name, pair in sorted(factors.items(), key=lambda item: _natural(item[0]))
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts parts of a module's name that are numbers by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _saved_scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The scaling of a layer as the folder says, whose configuration may be a converted one."""
    pattern = config.get("alpha_pattern") or {}
    alpha = pattern.get(first_matching_pattern(list(pattern), module), config["lora_alpha"])
    return float(alpha) / float(rank ** (0.5 if config.get("use_rslora") else 1.0))
