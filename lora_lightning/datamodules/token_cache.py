"""Tokenised splits on disk: one safetensors file a data set, named by everything that decides its content."""

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.errors import DataError


def cache_file(cache_dir: str | None, parts: Iterable[Any]) -> Path:
    """Names the file that holds the tokenised form of something.

    Args:
        cache_dir: The folder; `~/.cache/lora_lightning` (or below `$XDG_CACHE_HOME`) if not given.
        parts: Everything that decides the content: values that JSON can hold, and dataclasses of them.

    Returns:
        A path; the same parts give the same one on every machine.
    """
    root = cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lora_lightning"
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, default=asdict).encode())
    return Path(root).expanduser() / f"tokenized-{digest.hexdigest()[:32]}.safetensors"


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides the ids: the whole fast tokenizer, or the vocabulary where there is only a slow one.

    Args:
        tokenizer: Any.

    Returns:
        A value that JSON can hold.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    state: dict[str, Any] = json.loads(backend.to_str())
    return {name: value for name, value in state.items() if name not in {"truncation", "padding"}}  # last call's


def write_splits(path: Path, splits: Mapping[str, EncodedSplit]) -> None:
    """Writes beside the final place and renames, so that a half-written cache is never read.

    Args:
        path: The file; its folder is made if needed.
        splits: By name.

    Raises:
        DataError: If the file cannot be written.
    """
    tensors = {}
    for name, split in splits.items():
        tensors[f"{name}.lengths"] = split.lengths
        tensors |= {f"{name}.tokens.{column}": values for column, values in split.tokens.items()}
        tensors |= {f"{name}.rows.{column}": values for column, values in split.rows.items()}
    scratch = path.with_suffix(f".{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, scratch)
        scratch.replace(path)
    except (OSError, SafetensorError) as error:
        msg = f"tokenised data cannot be kept in {path.parent} ({error}); set --data.cache_dir."
        raise DataError(msg) from error
    finally:
        with suppress(OSError):  # an error here must not hide the one above
            scratch.unlink()


def read_split(path: Path, name: str) -> EncodedSplit:
    """Reads one split of a cache file.

    Args:
        path: Written by `write_splits`.
        name: Of the split.

    Returns:
        The split.

    Raises:
        DataError: If the file is damaged.
    """
    columns: dict[str, dict[str, Any]] = {"tokens": {}, "rows": {}}
    try:
        with safe_open(path, framework="numpy") as saved:
            for key in saved.keys():  # noqa: SIM118  # safe_open is no mapping
                split, kind, column = (*key.split("."), "")[:3]
                if split == name and kind in columns:
                    columns[kind][column] = saved.get_tensor(key)
            return EncodedSplit(saved.get_tensor(f"{name}.lengths"), **columns)
    except SafetensorError as error:
        msg = f"the tokenised data in {path} is damaged ({error}); delete the file and start again."
        raise DataError(msg) from error
