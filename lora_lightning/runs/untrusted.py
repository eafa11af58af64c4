"""What a checkpoint from elsewhere may not hold, though unpickling it executes nothing.

`torch.load(weights_only=True)` keeps code out. It does not keep out files that grow without end as they are read,
tensors that claim more elements than they have, or paths that Lightning's `ModelCheckpoint` later deletes.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lightning.errors import CheckpointError

PATHS = ("best_model_path", "last_model_path", "kth_best_model_path", "best_k_models")
COUNTERS = ("ready", "started", "processed", "completed")  # of Lightning's progress
KEEPS_ALL = "AdapterCheckpoint"  # removes no file, whatever path it finds
DEEPEST = 100  # of nested containers


def check_archive(path: Path) -> None:
    """Refuses a file that is larger inside than outside, before it is read.

    Args:
        path: The checkpoint. One that is no zip file is left to torch, which unpacks nothing then.

    Raises:
        CheckpointError: If an entry is compressed, or entries share bytes, as in a zip bomb; torch writes neither.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    inside = sum(entry.file_size for entry in entries)
    if inside > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        msg = (
            f"{path} is compressed or damaged ({inside} bytes of content in {path.stat().st_size}), as no checkpoint "
            "of lora-lightning is; use another file of the run."
        )
        raise CheckpointError(msg)


def check_content(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuses tensors, counts and paths that no run of this program writes.

    Args:
        checkpoint: What was loaded.
        path: What to call it in messages.

    Raises:
        CheckpointError: If a tensor claims more elements than are stored, progress is no count, or a callback names a
            path that leads out of its folder.
    """
    for name, value in _entries(checkpoint, "", str(path)):
        if isinstance(value, Tensor):
            _check_tensor(value, f"{path}: {name}")
    for name, value in _entries(checkpoint.get("loops"), "loops", str(path)):
        if name.rpartition(".")[2] in COUNTERS and type(value) is not int:
            msg = f"{path}: {name} is {str(value)[:60]!r}, but a count is needed; use another file of the run."
            raise CheckpointError(msg)
    callbacks = checkpoint.get("callbacks")
    for callback, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if callback != KEEPS_ALL:
            _check_paths(state, f"{path}: {callback}")


def _check_tensor(tensor: Tensor, name: str) -> None:
    claimed = tensor.numel() * tensor.element_size()
    if tensor.layout != torch.strided or tensor.is_meta or claimed > tensor.untyped_storage().nbytes():
        msg = (
            f"{name} claims the shape {tuple(tensor.shape)}, for which nothing is stored; the file is damaged or "
            "forged, so use another of the run."
        )
        raise CheckpointError(msg)


def _check_paths(state: Any, name: str) -> None:
    """Lightning compares names alone, so `checkpoints/../../thesis.txt` counts to it as one inside `checkpoints`."""
    for found in _paths(state):
        if "://" in found or _turns_back(found):
            msg = (
                f"{name} names the file {found!r}, which leads out of the run; the checkpoint is forged or from "
                "another program, so use one of the run."
            )
            raise CheckpointError(msg)


def _turns_back(path: str) -> bool:
    """Whether `..` comes after a folder; `../runs/a` does not turn back, `runs/a/../b` does."""
    parts = Path(path).parts
    return any(part == ".." and parts[place - 1] != ".." for place, part in enumerate(parts) if place > 0)


def _paths(state: Any) -> Iterator[str]:
    for name in PATHS if isinstance(state, Mapping) else ():
        value = state.get(name)
        yield from (str(entry) for entry in (value if isinstance(value, Mapping) else [value]) if entry)


def _entries(tree: Any, name: str, path: str) -> Iterator[tuple[str, Any]]:
    """Everything in nested containers, with the names that lead there."""
    waiting = [(name, tree, 0)]
    seen: set[int] = set()  # a list of lists of one list is short to write and endless to walk
    while waiting:
        name, value, depth = waiting.pop()
        yield name, value
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if depth == DEEPEST:
            msg = f"{path} is nested deeper than {DEEPEST} levels, as no checkpoint is; use another file of the run."
            raise CheckpointError(msg)
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        waiting += [(f"{name}.{key}".removeprefix("."), entry, depth + 1) for key, entry in entries]
