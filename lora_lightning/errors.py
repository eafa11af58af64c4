"""What can be wrong with a user's input, and with which status a command exits.

Each message is one sentence: what was given, what is allowed, how to fix it. `lora_lightning.cli.main` prints it
without a traceback.
"""

import signal
from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path

DEBUG = "--debug"  # of every command: print the traceback of any error


class ExitStatus(IntEnum):
    """The exit status of every command.

    Attributes:
        DONE: The command finished.
        INTERNAL_ERROR: A bug in this program; it prints a traceback.
        WRONG_INPUT: An option, a file or the environment has to change first.
        CHECK_FAILED: The command finished, but the trained model failed a check, such as that of the merged weights.
        STOPPED: Stopped by SIGTERM or SIGUSR1; the same command resumes. EX_TEMPFAIL of sysexits.h.
        INTERRUPTED: Stopped by Ctrl-C.
    """

    DONE = 0
    INTERNAL_ERROR = 1
    WRONG_INPUT = 2
    CHECK_FAILED = 3
    STOPPED = 75
    INTERRUPTED = 130


class LoraLightningError(Exception):
    """Base class of every error that is caused by the input and not by a bug in this program."""


class ConfigurationError(LoraLightningError):
    """A value in the YAML or on the command line is unknown or out of range."""


class DataError(LoraLightningError):
    """A data file is missing, malformed or contradicts itself; the message names the file and the row."""


class BackboneError(LoraLightningError):
    """The pretrained model cannot be found or is not of the right kind."""


class CheckpointError(LoraLightningError):
    """A checkpoint is incomplete, damaged or belongs to another model."""


class UnreadableError(CheckpointError):
    """A checkpoint may be intact, but cannot be read at the moment."""


class TrainingError(LoraLightningError):
    """Training cannot continue, for example because the loss is not a number."""


class TrainingStopped(BaseException):  # a signal handler raises it anywhere, and no `except Exception` may catch it
    """Training was asked to stop and has saved its last step, or had nothing to save.

    Args:
        asked: The signal.
        step: Number of optimizer steps that are saved; `None` outside training.
        main_process: Whether this process prints the messages of its machine.
        alone: Whether other processes may continue, because this one did not agree with them to stop.
    """

    def __init__(self, asked: signal.Signals, step: int | None, main_process: bool, alone: bool = False) -> None:
        super().__init__(asked, step, main_process, alone)
        self.asked = asked
        self.step = step
        self.main_process = main_process
        self.alone = alone
        self.how_to_resume = ""  # set once the run folder is known

    def __str__(self) -> str:
        """Returns what happened and how to resume."""
        hint = f"; {self.how_to_resume}" if self.how_to_resume else ""
        done = "before there was anything to save" if self.step is None else f"after step {self.step}, which is saved"
        return f"stopped by {self.asked.name} {done}{hint}"


class RunFinished(Exception):  # noqa: N818  # nothing is wrong
    """There is nothing to resume: the run is finished.

    Args:
        message: Says so.
        folder: The run's.
    """

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


class VerificationError(LoraLightningError):
    """The trained model failed a check, for example because merging the adapter changes its outputs."""


STATUS_OF: dict[type[BaseException], ExitStatus] = {  # the first that matches counts
    RunFinished: ExitStatus.DONE,
    VerificationError: ExitStatus.CHECK_FAILED,
    LoraLightningError: ExitStatus.WRONG_INPUT,
    KeyboardInterrupt: ExitStatus.INTERRUPTED,
}


def exit_status(error: BaseException | None) -> ExitStatus:
    """Returns the exit status of a command from the exception that ended it.

    Args:
        error: The exception; `None` if there was none.

    Returns:
        The status, the same for every command. A process that stopped in agreement with its main process exits with
        `DONE`: the main process's status counts, and Lightning would kill the others because of another one.
    """
    if isinstance(error, TrainingStopped):
        if not error.main_process and not error.alone:
            return ExitStatus.DONE
        return ExitStatus.INTERRUPTED if error.asked == signal.SIGINT else ExitStatus.STOPPED
    for kind, status in STATUS_OF.items():
        if isinstance(error, kind):
            return status
    return ExitStatus.DONE if error is None else ExitStatus.INTERNAL_ERROR


def suggest_names(name: str, allowed: Iterable[str], limit: int = 3) -> str:
    """Returns the remedy for an unknown name.

    Args:
        name: The name that was given.
        allowed: The names that exist.
        limit: The largest number of suggestions.

    Returns:
        `"did you mean 'a' or 'b'?"`, or the full list of names if none of them is similar.
    """
    names = sorted(set(allowed))
    close = get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"the choices are {', '.join(names)}."
