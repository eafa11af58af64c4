"""Which files of a backbone are on this machine already."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from lora_lightning.backbones.base_identity import WEIGHTS
from lora_lightning.backbones.source import resolve_backbone


def local_folder(backbone: str) -> Path | None:
    """The folder in which the files of a backbone already are, without asking the hub.

    Args:
        backbone: Hub id, folder or `package://` name.

    Returns:
        The folder, or the snapshot in the hub's cache; `None` for a hub id that is not in the cache.

    Raises:
        BackboneError: If the folder or package is not there.
    """
    source = resolve_backbone(backbone)
    if Path(source).is_dir():
        return Path(source)
    found = try_to_load_from_cache(source, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def has_weights(folder: Path | None) -> bool:
    """Whether a backbone's weights are on this machine, in a file whose names can be looked at without its values."""
    return folder is not None and any((folder / name).is_file() for name in WEIGHTS)
