"""Tells a user's mistake from a bug, and puts it into one sentence.

The phase and the type of an error decide, never the folder that a package is installed in. While options are parsed and
classes are made from them, a `ValueError`, `TypeError` or `ImportError` that another package raises is about the value
of an option. Once a command runs, such an error is a bug, unless Lightning is known to check an option only then.
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
from lora_lightning.configuration.parser import explain_parser_message
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError, TrainingError

OPTION_ERRORS = (ValueError, TypeError, ImportError)
OWN_PACKAGE = __name__.partition(".")[0]
OPTION_PACKAGES = {"lightning", "jsonargparse"}  # whose messages are about options without further words

# About a file or folder of the user's, wherever it is noticed.
REFUSED_BY_THE_SYSTEM = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ESTALE}

Explanation = Callable[[Exception], LoraLightningError | None]


def option_error(error: Exception) -> LoraLightningError | None:
    """Finds the user's mistake behind an error that was raised while options were parsed or classes were made.

    Args:
        error: Any.

    Returns:
        The error to show; `None` if it is a bug.
    """
    if found := _error_in_any_phase(error):
        return found
    cause = _error_of_class(error)
    module = raising_module(cause.__traceback__)
    package = module.partition(".")[0]
    if not isinstance(error, OPTION_ERRORS) or package in {"", OWN_PACKAGE}:
        return None
    if package not in OPTION_PACKAGES:
        return ConfigurationError(f"{module} raises {type(cause).__name__}: {' '.join(str(cause).split())}")
    return ConfigurationError(explain_parser_message(str(error)) if "\n" in str(error) else str(error))


def run_error(error: Exception) -> LoraLightningError | None:
    """Finds the user's mistake behind an error that was raised while a command ran.

    Args:
        error: Any.

    Returns:
        The error to show; `None` if it is a bug.
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
def explaining_errors(explanation: Explanation) -> Iterator[None]:
    """Replaces an error by the user's mistake behind it.

    Args:
        explanation: `option_error` or `run_error`.

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
        if found is find_own_error(error):
            raise found  # noqa: B904  # its cause is known already
        raise found from error


def find_own_error(error: BaseException | None) -> LoraLightningError | None:
    """Finds the error of this package that others wrapped, as jsonargparse and Lightning do.

    Args:
        error: Any.

    Returns:
        The first in its chain of causes and contexts; `None` if there is none.
    """
    seen: set[int] = set()  # a context may lead back to the first error
    while error is not None and id(error) not in seen:
        if isinstance(error, LoraLightningError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _error_of_class(error: BaseException) -> BaseException:
    """Returns what a class raised while it was made, which jsonargparse wraps in an error about its types."""
    while raising_module(error.__traceback__).startswith("jsonargparse") and error.__cause__ is not None:
        error = error.__cause__
    return error


def raising_module(traceback: TracebackType | None) -> str:
    """Finds the module whose code raised an error; the standard library raises on behalf of its caller.

    Args:
        traceback: Of the error.

    Returns:
        Its dotted name; empty for an error that was never raised.
    """
    name = ""
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in sys.stdlib_module_names:
            name = module
        traceback = traceback.tb_next
    return name


def _error_in_any_phase(error: Exception) -> LoraLightningError | None:
    """What the type of an error, or its message, shows to be the user's to fix."""
    if found := find_own_error(error) or _as_memory_error(error) or _as_lost_worker(error):
        return found
    if isinstance(error, MisconfigurationException):  # Lightning's word for a user's mistake
        return ConfigurationError(" ".join(str(error).split()))
    if isinstance(error, UnicodeDecodeError):
        return ConfigurationError(f"a file is not in UTF-8 ({error}); save it in that encoding.")
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


def _as_memory_error(error: Exception) -> TrainingError | None:
    """Too little memory, on a device or in the machine."""
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
    """A process of `data.num_workers` was killed, usually because memory was short."""
    why = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or not why.startswith("DataLoader worker"):
        return None
    msg = (
        f"a data loading process died ({why.rstrip('. ')}), usually because memory was short; lower data.num_workers "
        "or provide more memory. Then run the same command again, with --resume auto if it trains."
    )
    return TrainingError(msg)
