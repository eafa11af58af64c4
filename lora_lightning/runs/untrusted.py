"""Refuses dangerous content of untrusted checkpoints that unpickling without code does not prevent.

`torch.load(weights_only=True)` executes no code. It does not prevent zip bombs, tensors that claim more elements than
are stored, or paths of files that Lightning's `ModelCheckpoint` deletes later.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lightning.errors import CheckpointError

PATHS = ("best_model_path", "last_model_path", "kth_best_model_path", "best_k_models")
COUNTERS = ("ready", "started", "processed", "completed")  # in Lightning's progress
KEEPS_ALL = "AdapterCheckpoint"  # never removes a file, whatever its state contains
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
DEEPEST = 100  # nested containers


def check_archive(path: Path) -> None:
    """Refuses a file whose content is larger than the file, before it is read.

    Args:
        path: The checkpoint. A file that is not a zip archive is accepted, because torch unpacks nothing in it.

    Raises:
        CheckpointError: If an entry is compressed, or if entries share bytes, as in a zip bomb. Torch writes neither.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    inside = sum(entry.file_size for entry in entries)
    if inside > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        msg = (
            f"{path} is compressed or damaged ({inside} bytes of content in a file of {path.stat().st_size} bytes), "
            "but checkpoints of lora-lightning are not compressed; use another file of the run."
        )
        raise CheckpointError(msg)


def check_content(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuses tensors, counters and paths that this program never writes.

    Args:
        checkpoint: The loaded checkpoint.
        path: Name of the file for messages.

    Raises:
        CheckpointError: If a tensor claims more elements than are stored, a counter is not an integer, or the state of
            a callback contains a path outside the run folder; or if a weight or a number of the optimizer is not
            finite.
    """
    for name, value in _entries(checkpoint, "", str(path)):
        if isinstance(value, Tensor):
            _check_tensor(value, f"{path}: {name}")
    for name, value in checkpoint["state_dict"].items():
        check_finite(value, f"{path}: {name}", infinity_allowed=is_buffer_of_task(name))
    for part in ("optimizer_states", "lr_schedulers"):
        for name, value in _entries(checkpoint.get(part), part, str(path)):
            check_finite(value, f"{path}: {name}")
    for name, value in _entries(checkpoint.get("loops"), "loops", str(path)):
        if name.rpartition(".")[2] in COUNTERS and type(value) is not int:
            msg = f"{path}: {name} is {str(value)[:60]!r}, but it must be an integer; use another file of the run."
            raise CheckpointError(msg)
    callbacks = checkpoint.get("callbacks")
    for callback, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if callback != KEEPS_ALL:
            _check_paths(state, f"{path}: {callback}")


def check_finite(value: Any, name: str, *, infinity_allowed: bool = False) -> None:
    """Refuses NaN and infinity, which no run of this program saves as a weight or in an optimizer state.

    Args:
        value: A number or a tensor; anything else passes.
        name: What to call it in messages.
        infinity_allowed: Whether only NaN is refused, as for a threshold that is not chosen yet.

    Raises:
        CheckpointError: If it is not finite.
    """
    if isinstance(value, Tensor):
        if value.dtype not in FLOATS:
            return
        is_bad = bool(value.isnan().any() if infinity_allowed else not value.isfinite().all())
    else:
        is_bad = isinstance(value, float) and not math.isfinite(value)
    if is_bad:
        msg = (
            f"{name} holds NaN or infinite numbers; the run had diverged or the file is damaged, so use an earlier "
            "checkpoint of the run."
        )
        raise CheckpointError(msg)


def is_buffer_of_task(name: str) -> bool:
    """Whether a saved tensor is a task's own buffer, such as a threshold, and not a weight of its network."""
    return "." not in name


def _check_tensor(tensor: Tensor, name: str) -> None:
    claimed = tensor.numel() * tensor.element_size()
    if tensor.layout != torch.strided or tensor.is_meta or claimed > tensor.untyped_storage().nbytes():
        msg = (
            f"{name} claims the shape {tuple(tensor.shape)}, but the file does not contain its values; the file is "
            "damaged or forged, so use another file of the run."
        )
        raise CheckpointError(msg)


def _check_paths(state: Any, name: str) -> None:
    """Refuses paths outside the run folder; Lightning treats `checkpoints/../../thesis.txt` as in `checkpoints`."""
    for found in _paths(state):
        if "://" in found or _turns_back(found):
            msg = (
                f"{name} contains the path {found!r}, which is outside the run folder; the checkpoint is forged or "
                "from another program, so use another file of the run."
            )
            raise CheckpointError(msg)


def _turns_back(path: str) -> bool:
    """Returns whether `..` comes after a folder name, as in `runs/a/../b`, but not in `../runs/a`."""
    parts = Path(path).parts
    return any(part == ".." and parts[place - 1] != ".." for place, part in enumerate(parts) if place > 0)


def _paths(state: Any) -> Iterator[str]:
    for name in PATHS if isinstance(state, Mapping) else ():
        value = state.get(name)
        yield from (str(entry) for entry in (value if isinstance(value, Mapping) else [value]) if entry)


def _entries(tree: Any, name: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yields everything in nested containers with its dotted name."""
    waiting = [(name, tree, 0)]
    seen: set[int] = set()  # a container that contains another one many times would take forever
    while waiting:
        name, value, depth = waiting.pop()
        yield name, value
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if depth == DEEPEST:
            msg = (
                f"{path} is damaged or forged: it is nested deeper than {DEEPEST} levels; use another file of the run."
            )
            raise CheckpointError(msg)
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        waiting += [(f"{name}.{key}".removeprefix("."), entry, depth + 1) for key, entry in entries]
