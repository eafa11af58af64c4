"""Distinguishes a user's mistake from a bug, and explains the mistake in one sentence.

The phase and the type of an error decide, never the folder in which a package is installed. While options are parsed
and classes are instantiated, a `ValueError`, `TypeError` or `ImportError` of another package is about the value of an
option. Once a command runs, such an error is a bug, unless Lightning is known to check an option only then.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lora_lightning.compat.lightning import checks_option_late, raised_while_restoring
from lora_lightning.compat.torch import RECEIVES_TENSORS
from lora_lightning.configuration.parser import explain_parser_message
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError, TrainingError

OPTION_ERRORS = (ValueError, TypeError, ImportError)
OWN_PACKAGE = __name__.partition(".")[0]
OPTION_PACKAGES = {"lightning", "jsonargparse"}  # their messages about options need no further explanation

# About a file or folder of the user's, wherever it is noticed.
REFUSED_BY_THE_SYSTEM = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ESTALE}
# What the other end sees if a process dies while it sends a tensor.
CUT_OFF = (ConnectionError, EOFError, FileNotFoundError)

Explanation = Callable[[Exception], LoraLightningError | None]


def explain_option_error(error: Exception) -> LoraLightningError | None:
    """Finds the user's mistake behind an error that was raised while parsing options or instantiating classes.

    Args:
        error: Any exception.

    Returns:
        The error to show to the user; `None` if it is a bug.
    """
    if found := _error_in_any_phase(error):
        return found
    cause = _constructor_error(error)
    module = raising_module(cause.__traceback__)
    package = module.partition(".")[0]
    if not isinstance(error, OPTION_ERRORS) or package in {"", OWN_PACKAGE}:
        return None
    if package not in OPTION_PACKAGES:
        return ConfigurationError(f"{module} raises {type(cause).__name__}: {' '.join(str(cause).split())}")
    return ConfigurationError(explain_parser_message(str(error)) if "\n" in str(error) else str(error))


def explain_run_error(error: Exception) -> LoraLightningError | None:
    """Finds the user's mistake behind an error that was raised while a command was running.

    Args:
        error: Any exception.

    Returns:
        The error to show to the user; `None` if it is a bug.
    """
    if found := _error_in_any_phase(error):
        return found
    reason = " ".join(str(error).split())
    if raised_while_restoring(error.__traceback__):
        why = f"{type(error).__name__}: {reason[:200]}"
        msg = f"the checkpoint cannot be restored ({why}); use another file of the run."
        return CheckpointError(msg)
    if isinstance(error, OPTION_ERRORS) and checks_option_late(error.__traceback__):
        return ConfigurationError(reason)
    return None


@contextmanager
def replace_errors(explanation: Explanation) -> Iterator[None]:
    """Replaces an error by the explanation of the user's mistake behind it.

    Args:
        explanation: `explain_option_error` or `explain_run_error`.

    Raises:
        LoraLightningError: In place of an error that is not a bug.
    """
    try:
        yield
    except LoraLightningError:
        raise
    except Exception as error:
        found = explanation(error)
        if found is None:
            raise
        if found is find_lora_lightning_error(error):
            raise found  # noqa: B904  # it already has its cause
        raise found from error


def find_lora_lightning_error(error: BaseException | None) -> LoraLightningError | None:
    """Finds the error of this package inside an error that jsonargparse or Lightning has wrapped around it.

    Args:
        error: Any exception.

    Returns:
        The first one in the chain of causes and contexts; `None` if there is none.
    """
    seen: set[int] = set()  # the chain may be circular
    while error is not None and id(error) not in seen:
        if isinstance(error, LoraLightningError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _constructor_error(error: BaseException) -> BaseException:
    """Returns the error that a class raised in its constructor; jsonargparse wraps it in an error about types."""
    while raising_module(error.__traceback__).startswith("jsonargparse") and error.__cause__ is not None:
        error = error.__cause__
    return error


def raising_module(traceback: TracebackType | None) -> str:
    """Finds the module that raised an error; if the standard library raised it, the module that called it.

    Args:
        traceback: The traceback of the error.

    Returns:
        The dotted name of the module; empty for an error that was never raised.
    """
    name = ""
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in sys.stdlib_module_names:
            name = module
        traceback = traceback.tb_next
    return name


def _error_in_any_phase(error: Exception) -> LoraLightningError | None:
    """Explains errors whose type or message shows, in any phase, that the user can fix them."""
    if found := find_lora_lightning_error(error) or _as_memory_error(error) or _as_lost_worker(error):
        return found
    if isinstance(error, MisconfigurationException):  # Lightning's error for a user's mistake
        return ConfigurationError(" ".join(str(error).split()))
    if isinstance(error, UnicodeDecodeError):
        return ConfigurationError(f"a file is not encoded in UTF-8 ({error}); save it in that encoding.")
    if isinstance(error, OSError):
        return _as_refused_path(error)
    if isinstance(error, ValueError) and "embedded null byte" in str(error):
        return ConfigurationError(r"the name of a file or folder contains the character \x00; remove it.")
    return None


def _as_refused_path(error: OSError) -> ConfigurationError | None:
    """A path that the system refuses, such as a folder of another user; a missing file may be a bug."""
    if error.errno == errno.ENAMETOOLONG:
        return ConfigurationError(f"a file name is too long: {str(error.filename)[:60]!r}...; give a shorter one.")
    if error.errno not in REFUSED_BY_THE_SYSTEM or error.filename is None:
        return None
    path, reason = os.fsdecode(error.filename), os.strerror(error.errno).lower()
    msg = f"{path} cannot be read or written ({reason}); change its permissions, or give another path."
    return ConfigurationError(msg)


def is_memory_error(error: Exception) -> bool:
    """Whether a device or the machine ran out of memory.

    Args:
        error: Any.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _as_memory_error(error: Exception) -> TrainingError | None:
    """Explains that a device or the machine ran out of memory."""
    if not is_memory_error(error):
        return None
    text = str(error)
    why = f" ({text.strip().splitlines()[0].rpartition(']')[2].strip()})" if text.strip() else ""
    msg = (
        f"there is not enough memory{why}; lower data.batch_size, the length of the texts or model.lora.r, or set "
        "--model.gradient_checkpointing true."
    )
    return TrainingError(msg)


def _as_lost_worker(error: Exception) -> TrainingError | None:
    """Explains that a data loading process was killed, usually because the machine ran out of memory."""
    why = " ".join(str(error).split())
    if isinstance(error, CUT_OFF) and raising_module(error.__traceback__) == RECEIVES_TENSORS:
        why = f"DataLoader worker was sending a batch: {why or type(error).__name__}"
    elif not isinstance(error, RuntimeError) or not why.startswith("DataLoader worker"):
        return None
    msg = (
        f"a data loading process died ({why.rstrip('. ')}), usually because the machine ran out of memory; lower "
        "data.num_workers or provide more memory. Then run the same command again, with --resume auto if it is fit."
    )
    return TrainingError(msg)
