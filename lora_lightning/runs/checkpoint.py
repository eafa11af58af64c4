"""Contents of a checkpoint: only trainable parameters; reading verifies every byte. `checkpoint_io` writes it."""

import errno
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lightning.errors import CheckpointError, UnreadableError
from lora_lightning.runs.untrusted import FLOATS, check_archive, check_content, check_finite, is_buffer_of_task

FOLDER = 0x10  # MS-DOS attribute of a folder in a zip archive


def trainable_state(state_dict: Mapping[str, Tensor], keep: Collection[str]) -> dict[str, Tensor]:
    """Removes the frozen base from a state dict.

    Args:
        state_dict: The full state of the module, by dotted name.
        keep: Names of the trainable parameters and of their buffers.

    Returns:
        The entries to save, in the order of `state_dict`. Tensors are shared, not copied.

    Raises:
        CheckpointError: If a name in `keep` is not in the state, because a trainable parameter would be lost.
    """
    lost = [name for name in keep if name not in state_dict]
    if lost:
        msg = (
            f"{len(lost)} trainable parameters would be missing from the checkpoint, for example {lost[0]}, so it was "
            "not saved."
        )
        raise CheckpointError(msg)
    wanted = set(keep)
    return {name: tensor for name, tensor in state_dict.items() if name in wanted}


def check_state(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Verifies that a saved state matches a model: the same names, shapes and kinds of numbers, all of them finite.

    Args:
        state_dict: The saved state.
        expected: The model's own tensors, for every name that must be in the saved state.
        where: Name of the file for messages.

    Raises:
        CheckpointError: If a name is missing or unexpected, if a shape or dtype differs, or if a number is not finite.
    """
    missing = [name for name in expected if name not in state_dict]
    unknown = [name for name in state_dict if name not in expected]
    if missing:
        msg = (
            f"{where} lacks {len(missing)} of the model's {len(expected)} trainable tensors, for example {missing[0]}: "
            "it was saved with another backbone or other adapter settings; use the config.yaml of its run."
        )
        raise CheckpointError(msg)
    if unknown:
        msg = (
            f"{where} contains {len(unknown)} tensors that are not trainable in this model, for example {unknown[0]}: "
            "it was saved with another backbone or other adapter settings; use the config.yaml of its run."
        )
        raise CheckpointError(msg)
    for name, tensor in expected.items():
        saved = state_dict[name]
        if tensor.shape != saved.shape:
            msg = (
                f"{where}: {name} has shape {tuple(saved.shape)}, but this model needs "
                f"{tuple(tensor.shape)}; use the config.yaml of the checkpoint's run."
            )
            raise CheckpointError(msg)
        same_kind = saved.dtype in FLOATS if tensor.is_floating_point() else saved.dtype == tensor.dtype
        if not same_kind:
            msg = (
                f"{where}: {name} is of {saved.dtype}, but this model needs {tensor.dtype}; the file is damaged or "
                "forged, so use another of the run."
            )
            raise CheckpointError(msg)
        check_finite(saved, f"{where}: {name}", infinity_allowed=is_buffer_of_task(name))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a `.ckpt` file without executing anything in it, and verifies that no byte of its content has changed.

    The file is a zip archive with a checksum per tensor. PyTorch writes the checksums, but does not verify them.

    Args:
        path: The file.

    Returns:
        The checkpoint's dictionary, tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, truncated or modified, or is not a checkpoint of this program.
        UnreadableError: If the disk fails or memory runs out, so that the file may be intact.
    """
    if not Path(path).is_file():
        problem = "is a folder" if Path(path).is_dir() else "does not exist"
        msg = f"the checkpoint {path} {problem}; use a file such as <run>/checkpoints/best.ckpt or last.ckpt."
        raise CheckpointError(msg)
    check_archive(Path(path))
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch reads nothing for an entry that is marked as a folder, and leaves its tensor uninitialized.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER]
            spoiled = folders[0] if folders else archive.testzip()
        checkpoint = None if spoiled else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and more here
        if _says_nothing_about_the_file(error):
            why = getattr(error, "strerror", None) or "there is not enough memory"
            msg = f"{path} cannot be read at the moment ({why}); once that is fixed, start the same command again."
            raise UnreadableError(msg) from error
        msg = f"{path} is damaged or not a checkpoint ({type(error).__name__}); use another file of the run."
        raise CheckpointError(msg) from error
    if spoiled:
        msg = f"{path} is damaged: its entry {spoiled} has changed since it was written; use another file of the run."
        raise CheckpointError(msg)
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        msg = f"{path} has no state_dict and hyper_parameters; use a .ckpt file that lora-lightning wrote."
        raise CheckpointError(msg)
    parts = {name: isinstance(checkpoint[name], Mapping) for name in ("state_dict", "hyper_parameters")}
    if not all(parts.values()) or not all(isinstance(value, Tensor) for value in checkpoint["state_dict"].values()):
        msg = f"{path} contains values other than named tensors; use a .ckpt file that lora-lightning wrote."
        raise CheckpointError(msg)
    check_content(checkpoint, path)
    return checkpoint


def _says_nothing_about_the_file(error: Exception) -> bool:
    """Returns whether the machine failed, and not the file. EINVAL is about the file: it names an invalid position."""
    if isinstance(error, OSError):
        return error.errno not in {None, errno.EINVAL}
    return isinstance(error, MemoryError)


def check_resumable(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuses a checkpoint from which training cannot resume; Lightning would silently start from scratch.

    Args:
        checkpoint: The result of `read_checkpoint`.
        path: Name of the file for messages.

    Raises:
        CheckpointError: If the state of the optimizer or the position in training is missing.
    """
    loops, optimizers = checkpoint.get("loops"), checkpoint.get("optimizer_states")
    known = isinstance(loops, Mapping) and isinstance(loops.get("fit_loop"), Mapping)
    if not known or not isinstance(optimizers, list) or len(optimizers) != 1:
        msg = (
            f"{path} has no optimizer state and position to resume from; use last.ckpt of a run, or start from scratch."
        )
        raise CheckpointError(msg)
