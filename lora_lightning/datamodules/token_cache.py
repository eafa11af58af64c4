"""Tokenized splits on disk: one safetensors file per data set, named by a hash of everything that decides its content.

A cache only saves time: without a folder to write to, or with a damaged file, the data is tokenized again.
"""

import hashlib
import inspect
import json
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.datamodules.content_hash import compared_fields
from lora_lightning.runs.files import atomic_file
from lora_lightning.runs.user_cache import user_cache_folder

LAYOUT = 6  # of the file; part of its name, so that another release does not read it
PLACES = ("_file", "name_or_path", "is_local", "local_files_only")  # ends of options that say where a tokenizer is from
NO_CACHE = "so every start tokenizes the data again; set --data.cache_dir to a folder that you can write to."

Tensors = Mapping[str, NDArray[Any]]


def cache_file(cache_dir: str | None, parts: Iterable[Any]) -> Path | None:
    """Names the file that holds a tokenized data set.

    Args:
        cache_dir: The folder; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        parts: Everything that decides the content: values that JSON can hold, and dataclasses of them.

    Returns:
        The path, whose name is the same on every machine; `None` if the folder is below the home folder of a user who
        has none, as in many containers.
    """
    digest = hashlib.sha256()
    for part in (LAYOUT, *parts):
        digest.update(json.dumps(part, default=compared_fields).encode())
    try:
        folder = Path(cache_dir).expanduser() if cache_dir else user_cache_folder()
    except RuntimeError:
        return None
    return None if folder is None else folder / f"tokenized-{digest.hexdigest()[:32]}.safetensors"


def own_code(data_class: type, package_class: type) -> list[tuple[str, str]] | None:
    """The code of a user's own data module: what its `encode` returns may change with every edit.

    Args:
        data_class: The class of a data module.
        package_class: The class of this package that it inherits from.

    Returns:
        The name and a hash of the module's source for each class outside this package, none for a class of it; `None`
        if a class has no source, as in a notebook. A change in another file that it imports goes unnoticed.
    """
    package = __name__.partition(".")[0]
    own = [each for each in data_class.__mro__ if each not in package_class.__mro__]
    own = [each for each in own if each.__module__.partition(".")[0] != package]
    try:
        sources = [Path(inspect.getfile(each)).read_bytes() for each in own]
    except (OSError, TypeError):
        return None
    names = [f"{each.__module__}.{each.__qualname__}" for each in own]
    return [(name, hashlib.sha256(source).hexdigest()) for name, source in zip(names, sources, strict=True)]


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything about a tokenizer that decides the token ids.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        The full fast tokenizer as JSON, or files and options of a slow one; and which tokens are special.
    """
    special = {
        "map": tokenizer.special_tokens_map,
        "all": sorted(tokenizer.all_special_tokens),
        "split": tokenizer.split_special_tokens,
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = _slow_state(tokenizer) if backend is None else json.loads(backend.to_str())
    state = {name: value for name, value in state.items() if name not in {"truncation", "padding"}}  # last call's
    return {**state, "special tokens": special}


def _slow_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Merges and scores are in the files alone. Options that name files differ from machine to machine."""
    options = {name: str(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(PLACES)}
    with TemporaryDirectory() as folder:
        try:
            paths = tokenizer.save_vocabulary(folder) or ()
        except NotImplementedError:  # a tokenizer of characters, for example
            paths = ()
        files = {Path(path).name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if path}
    return {"vocabulary": tokenizer.get_vocab(), "options": options, "files": files}


def write_splits(path: Path | None, splits: Mapping[str, EncodedSplit]) -> None:
    """Writes the file in one step, so that a half-written cache is never read; warns if that is not possible.

    Args:
        path: The file, whose folder is created if needed; `None` if the user has no home folder.
        splits: By name.
    """
    if path is None:
        rank_zero_warn(f"tokenized data is not cached, because this user has no home folder, {NO_CACHE}")
        return
    tensors: dict[str, NDArray[Any]] = {}
    for name, split in splits.items():
        tensors[f"{name}.lengths"] = split.lengths
        tensors |= {f"{name}.tokens.{column}": values for column, values in split.tokens.items()}
        tensors |= {f"{name}.rows.{column}": values for column, values in split.rows.items()}
    notes = json.dumps({name: split.notes for name, split in splits.items()})
    own = path.with_suffix(f".{socket.gethostname()}.{os.getpid()}")  # another run may write the same data just now
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(own) as file:
            file.write(save(tensors, {"notes": notes, "sha256": _checksum(tensors, notes)}))
        own.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            own.unlink()
        rank_zero_warn(f"tokenized data cannot be cached in {path.parent} ({_reason(error)}), {NO_CACHE}")


def read_splits(path: Path) -> dict[str, EncodedSplit] | None:
    """Reads a cache file; warns if it cannot be used.

    Args:
        path: Written by `write_splits`.

    Returns:
        The splits by name; `None` if there is no such file, or it is damaged or not readable.
    """
    try:
        with path.open("rb"):  # safetensors does not tell a missing file from an unreadable one
            pass
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        problem = f"cannot be read ({_reason(error)})"
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        problem = f"is damaged ({_reason(error)})"
    rank_zero_warn(f"the tokenized data in {path} {problem}, so the data is tokenized again.")
    return None


def _read(path: Path) -> dict[str, EncodedSplit]:
    with safe_open(path, framework="numpy") as saved:
        tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118  # safe_open is no mapping
        metadata = saved.metadata() or {}
    if metadata["sha256"] != _checksum(tensors, metadata["notes"]):
        msg = "its checksum differs"
        raise ValueError(msg)
    splits = {}
    for name, notes in json.loads(metadata["notes"]).items():
        tokens, rows = (
            {key.removeprefix(start): values for key, values in tensors.items() if key.startswith(start)}
            for start in (f"{name}.tokens.", f"{name}.rows.")
        )
        splits[name] = EncodedSplit(tensors[f"{name}.lengths"], tokens, rows, tuple(notes))
    return splits


def _checksum(tensors: Tensors, notes: str) -> str:
    digest = hashlib.sha256(notes.encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror).lower() if strerror else str(error) or type(error).__name__
