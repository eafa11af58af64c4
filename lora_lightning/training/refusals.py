"""What this package's own parts and others raise over a user's mistake, as the one sentence that a user sees."""

import errno
import traceback
from pathlib import Path

import torch

from lora_lightning.configuration.parser import explain_parser_message
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError, TrainingError

REFUSING = {"lightning", "jsonargparse"}  # packages that check options
RESTORING = "checkpoint_connector.py"  # Lightning's; what it reads with is called restore... or resume...


def as_refusal(error: Exception) -> LoraLightningError | None:
    """Finds the sentence for an error.

    Args:
        error: Raised by anything that a command called.

    Returns:
        Our own error, which others wrap; else one made of theirs; `None` where no user's mistake is behind it.
    """
    return own_error(error) or _as_memory_error(error) or _as_lost_worker(error) or _as_user_error(error)


def _as_user_error(error: Exception) -> LoraLightningError | None:
    """What Lightning or the parser itself refuses is an option's value; what fails deeper is no user's mistake."""
    if isinstance(error, UnicodeDecodeError):
        return ConfigurationError(f"a file is not in UTF-8 ({error}); save it in that encoding.")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return ConfigurationError(f"a file's name is too long: {str(error.filename)[:60]!r}...; give a shorter one.")
    if isinstance(error, ValueError) and "embedded null byte" in str(error):
        return ConfigurationError(r"the name of a file or folder holds the character \x00, which none can; mend it.")
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.filename.endswith(RESTORING) and frame.name.lstrip("_").startswith("re") for frame in frames):
        why = " ".join(str(error).split())[:200]
        msg = f"the checkpoint cannot be restored ({type(error).__name__}: {why}); use another file of the run."
        return CheckpointError(msg)
    refused_by = Path(frames[-1].filename).parts if frames else ()
    if not isinstance(error, ValueError | TypeError | ImportError) or not REFUSING.intersection(refused_by):
        return None
    return ConfigurationError(explain_parser_message(str(error)) if "\n" in str(error) else str(error))


def _as_memory_error(error: Exception) -> TrainingError | None:
    """Too little memory, on a device or in the machine, is for the user to mend."""
    text = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in text:
        return None
    why = text.strip().splitlines()[0].rpartition("]")[2].strip() if text.strip() else "none is left"
    msg = (
        f"there is too little memory ({why}); lower data.batch_size, the length of the texts or model.lora.r, or set "
        "--model.gradient_checkpointing true."
    )
    return TrainingError(msg)


def _as_lost_worker(error: Exception) -> TrainingError | None:
    """A process of `data.num_workers` that was killed, mostly because memory was short."""
    why = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or not why.startswith("DataLoader worker"):
        return None
    msg = (
        f"a process that loads data is gone ({why.rstrip('. ')}); mostly memory was short, so lower data.num_workers "
        "or find more. Then start the same command again, with --resume auto if it trains."
    )
    return TrainingError(msg)


def own_error(error: BaseException | None) -> LoraLightningError | None:
    """Finds the error of this package that others wrapped, as jsonargparse and Lightning do.

    Args:
        error: Any.

    Returns:
        The first in its chain of causes and contexts; `None` where there is none.
    """
    seen: set[int] = set()  # a context may lead back to where it began
    while error is not None and id(error) not in seen:
        if isinstance(error, LoraLightningError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
