"""The exceptions of this package, and the exit status of a command for each of them.

Each message is one sentence: what was given, what is allowed, and how to fix it. `lora_lightning.cli.main` prints it
without a traceback.
"""

import signal
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path

FEW = 4  # names in a sentence

DEBUG = "--debug"  # an option of every command: print the traceback of any error


class ExitStatus(IntEnum):
    """The exit status of every command.

    Attributes:
        DONE: The command finished.
        INTERNAL_ERROR: A bug in this program; it prints a traceback.
        WRONG_INPUT: An option, a file or the environment has to be changed first.
        CHECK_FAILED: The command finished, but the trained model failed a check, such as the merge check; or some
            trials of a study failed, or were not started because its budget is spent.
        STOPPED: Stopped by SIGTERM or SIGUSR1; the same command resumes the run. EX_TEMPFAIL in sysexits.h.
        INTERRUPTED: Stopped by Ctrl-C.
    """

    DONE = 0
    INTERNAL_ERROR = 1
    WRONG_INPUT = 2
    CHECK_FAILED = 3
    STOPPED = 75
    INTERRUPTED = 130


class LoraLightningError(Exception):
    """Base class of all errors that are caused by the input and not by a bug in this program."""


class ConfigurationError(LoraLightningError):
    """A value in the YAML or on the command line is unknown or out of range."""


class DataError(LoraLightningError):
    """A data file is missing, malformed or inconsistent; the message names the file and the row."""


class BackboneError(LoraLightningError):
    """The pretrained model cannot be found, or does not suit the task."""


class CheckpointError(LoraLightningError):
    """A checkpoint is incomplete, damaged or belongs to another model."""


class UnreadableError(CheckpointError):
    """A file may be intact, but cannot be read, for example because of a disk error or its newer format."""


class TrainingError(LoraLightningError):
    """Training cannot continue, for example because the loss is not a number."""


class TrainingStopped(BaseException):  # a signal handler raises it anywhere, and no `except Exception` may catch it
    """Training received a signal to stop. It has saved its last step, or had nothing to save.

    Args:
        received: The signal.
        step: Number of optimizer steps that are saved; `None` outside training.
        main_process: Whether this process prints messages for its machine.
        alone: Whether other processes may still be running, because this one stopped without informing them.
    """

    def __init__(self, received: signal.Signals, step: int | None, main_process: bool, alone: bool = False) -> None:
        super().__init__(received, step, main_process, alone)
        self.received = received
        self.step = step
        self.main_process = main_process
        self.alone = alone
        self.resume_hint = ""  # set once the run folder is known

    def __str__(self) -> str:
        """Returns what happened and how to resume."""
        hint = f"; {self.resume_hint}" if self.resume_hint else ""
        done = "before there was anything to save" if self.step is None else f"after step {self.step}, which is saved"
        return f"stopped by {self.received.name} {done}{hint}"


class RunFinished(Exception):  # noqa: N818  # nothing is wrong
    """There is nothing to resume: the run is finished.

    Args:
        message: A sentence for the user.
        folder: The run folder.
    """

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


class VerificationError(LoraLightningError):
    """The trained model failed a check, for example because merging the adapter changes its outputs."""


class TrialsFailed(LoraLightningError):  # noqa: N818  # the study itself is finished
    """Some trials of a study failed, were not started or have no times. All others are finished."""


STATUS_BY_ERROR: dict[type[BaseException], ExitStatus] = {  # the first match counts
    RunFinished: ExitStatus.DONE,
    VerificationError: ExitStatus.CHECK_FAILED,
    TrialsFailed: ExitStatus.CHECK_FAILED,
    LoraLightningError: ExitStatus.WRONG_INPUT,
    KeyboardInterrupt: ExitStatus.INTERRUPTED,
}


def exit_status(error: BaseException | None) -> ExitStatus:
    """Returns the exit status of a command that an exception ended.

    Args:
        error: The exception; `None` if there was none.

    Returns:
        The status, which does not depend on the command. A process that stopped together with its main process exits
        with `DONE`: only the main process's status counts, and Lightning kills the others if one of them fails.
    """
    if isinstance(error, TrainingStopped):
        if not error.main_process and not error.alone:
            return ExitStatus.DONE
        return ExitStatus.INTERRUPTED if error.received == signal.SIGINT else ExitStatus.STOPPED
    for kind, status in STATUS_BY_ERROR.items():
        if isinstance(error, kind):
            return status
    return ExitStatus.DONE if error is None else ExitStatus.INTERNAL_ERROR


def suggest_names(name: str, allowed: Iterable[str], limit: int = 3) -> str:
    """Suggests existing names in place of an unknown one.

    Args:
        name: The unknown name.
        allowed: The existing names.
        limit: Maximum number of suggestions.

    Returns:
        `"did you mean 'a' or 'b'?"`, or the full list of names if none of them is similar.
    """
    names = sorted(set(allowed))
    nearly_equal = get_close_matches(name, names, n=limit, cutoff=0.8)  # beside them the merely similar are noise
    close = nearly_equal or get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"the choices are {', '.join(names)}."


def few_names(names: Sequence[str]) -> str:
    """Lists names, at most four of them."""
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
