"""The save contract: a checkpoint holds the trainable parameters, and loading proves that none is missing."""

import errno
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lightning.errors import CheckpointError, UnreadableError
from lora_lightning.runs.untrusted import check_archive, check_content

FOLDER = 0x10  # MS-DOS's attribute, in a zip archive


def keep_what_trains(state_dict: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
    """Leaves the frozen base out of a state dict.

    Args:
        state_dict: The module's full state, by dotted name.
        keep: Names of the trained parameters and of the buffers that go with them.

    Returns:
        The kept entries, in the order of `state_dict`; tensors are shared, not copied.

    Raises:
        CheckpointError: If a name in `keep` is not in the state, so that a trained parameter would be lost.
    """
    lost = [name for name in keep if name not in state_dict]
    if lost:
        msg = f"{len(lost)} trained parameters would be missing from the checkpoint, {lost[0]} first; none was saved."
        raise CheckpointError(msg)
    wanted = set(keep)
    return {name: tensor for name, tensor in state_dict.items() if name in wanted}


def check_state(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Proves that a saved state fits: the same names and the same shapes.

    Args:
        state_dict: What was saved.
        expected: The model's own tensors for every name that must be there.
        where: What to call the file in a message.

    Raises:
        CheckpointError: If a name is missing or unknown, or a shape differs.
    """
    missing = [name for name in expected if name not in state_dict]
    unknown = [name for name in state_dict if name not in expected]
    if missing:
        msg = (
            f"{where} lacks {len(missing)} of the {len(expected)} trained tensors, {missing[0]} first: it was made "
            "with another backbone or other adapter settings; use the config.yaml of its own run."
        )
        raise CheckpointError(msg)
    if unknown:
        msg = (
            f"{where} holds {len(unknown)} tensors that this model does not train, {unknown[0]} first: it was made "
            "with another backbone or other adapter settings; use the config.yaml of its own run."
        )
        raise CheckpointError(msg)
    for name, tensor in expected.items():
        if tensor.shape != state_dict[name].shape:
            msg = (
                f"{where}: {name} has shape {tuple(state_dict[name].shape)}, but this model needs "
                f"{tuple(tensor.shape)}; use the config.yaml of the checkpoint's own run."
            )
            raise CheckpointError(msg)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a `.ckpt` without executing anything in it, and proves that no byte of its content has changed.

    The file is a zip archive with a checksum for each tensor, which PyTorch writes, but does not compare.

    Args:
        path: The file.

    Returns:
        The checkpoint's dictionary, tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, truncated, changed, or no checkpoint of this program.
        UnreadableError: If disk or memory fail, so that it may be whole.
    """
    if not Path(path).is_file():
        problem = "is a folder" if Path(path).is_dir() else "does not exist"
        msg = f"the checkpoint {path} {problem}; a run's checkpoints are <run>/checkpoints/best.ckpt and last.ckpt."
        raise CheckpointError(msg)
    check_archive(Path(path))
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch takes an entry that is marked as a folder for an empty one, and leaves its tensor as memory was.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER]
            spoiled = folders[0] if folders else archive.testzip()
        checkpoint = None if spoiled else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and more here
        if _says_nothing_about_the_file(error):
            why = getattr(error, "strerror", None) or "there is too little memory"
            msg = f"{path} cannot be read at the moment ({why}); once that is fixed, start the same command again."
            raise UnreadableError(msg) from error
        msg = f"{path} is damaged or not a checkpoint ({type(error).__name__}); use another file of the run."
        raise CheckpointError(msg) from error
    if spoiled:
        msg = f"{path} is damaged: {spoiled} in it has changed since it was written; use another file of the run."
        raise CheckpointError(msg)
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        msg = f"{path} holds no state_dict and hyper_parameters; use a .ckpt file that lora-lightning wrote."
        raise CheckpointError(msg)
    parts = {name: isinstance(checkpoint[name], Mapping) for name in ("state_dict", "hyper_parameters")}
    if not all(parts.values()) or not all(isinstance(value, Tensor) for value in checkpoint["state_dict"].values()):
        msg = f"{path} holds something else than tensors by name; use a .ckpt file that lora-lightning wrote."
        raise CheckpointError(msg)
    check_content(checkpoint, path)
    return checkpoint


def _says_nothing_about_the_file(error: Exception) -> bool:
    """Whether the machine failed; a position that a damaged file names and does not have is EINVAL."""
    if isinstance(error, OSError):
        return error.errno not in {None, errno.EINVAL}
    return isinstance(error, MemoryError)


def check_resumable(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuses a checkpoint that training cannot be resumed from; Lightning would silently start from scratch.

    Args:
        checkpoint: From `read_checkpoint`.
        path: What to call it in messages.

    Raises:
        CheckpointError: If the optimizer's state or the place in training is missing.
    """
    loops, optimizers = checkpoint.get("loops"), checkpoint.get("optimizer_states")
    known = isinstance(loops, Mapping) and isinstance(loops.get("fit_loop"), Mapping)
    if not known or not isinstance(optimizers, list) or len(optimizers) != 1:
        msg = (
            f"{path} holds no optimizer state and epoch to resume from; use last.ckpt of a run, or start from scratch."
        )
        raise CheckpointError(msg)
