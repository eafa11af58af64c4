"""Reads the weights of a PEFT folder, and finds the folder of an adapter on the hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from peft import load_peft_weights
from torch import Tensor

from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG
from lora_lightning.backbones.source import hub_is_reachable
from lora_lightning.errors import CheckpointError

FILES_OF_ADAPTERS = ["*.json", "*.safetensors", "adapter_model.bin", "*.txt", "*.model", "*.jinja", "config/*"]


def read_adapter_weights(folder: Path) -> dict[str, Tensor]:
    """Reads the weights of an adapter.

    Args:
        folder: The PEFT folder.

    Returns:
        Tensors on the CPU by PEFT's names, which leave out the adapter's own name.

    Raises:
        CheckpointError: If the file is missing or damaged, or if a weight is not finite.
    """
    try:
        weights: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu", local_files_only=True)
    except Exception as error:  # a damaged or missing file makes safetensors, torch and the hub's client raise anything
        why = " ".join(str(error).split())[:150]
        msg = f"the weights in {folder} cannot be read ({why}); export the adapter again."
        raise CheckpointError(msg) from error
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        msg = f"{folder}: {broken[0]} is not finite; use another adapter."
        raise CheckpointError(msg)
    return weights


def find_adapter_folder(adapter: str) -> Path:
    """Finds an adapter, downloading it first if it is on the hub.

    Args:
        adapter: A folder, or a hub id.

    Returns:
        The folder.

    Raises:
        CheckpointError: If there is none, or if it holds no adapter.
    """
    folder = Path(adapter).expanduser()
    if not folder.exists():
        folder = _download(adapter)
    if not (folder / ADAPTER_CONFIG).is_file():
        inside = folder / "adapter"
        hint = f"give {inside}" if (inside / ADAPTER_CONFIG).is_file() else "give the folder of a PEFT adapter"
        msg = f"model.adapter is {adapter!r}, which holds no {ADAPTER_CONFIG}; {hint}, such as RUN/adapter."
        raise CheckpointError(msg)
    return folder


def _download(adapter: str) -> Path:
    try:
        return Path(
            snapshot_download(adapter, allow_patterns=FILES_OF_ADAPTERS, local_files_only=not hub_is_reachable())
        )
    except Exception as error:  # the hub's client raises many kinds, for a name that cannot be an id too
        msg = (
            f"model.adapter is {adapter!r}, which is not a folder and could not be downloaded from the hub; check the "
            "spelling, give a folder that contains the adapter, or resume a run that has started from it with its "
            "config.yaml and --resume auto, which does not need the adapter any more."
        )
        raise CheckpointError(msg) from error
