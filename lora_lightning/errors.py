"""What can be wrong with a user's input: each error says what it was, what is allowed, how to mend it.

`lora_lightning.cli.main` prints these as one line without a traceback and exits with status 2.
"""

import signal
from collections.abc import Iterable
from difflib import get_close_matches

# Exit statuses.
USER_ERROR = 2
INTERRUPTED = 130  # by Ctrl-C
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not finished, start the same command again


class LoraLightningError(Exception):
    """Base of every error that is the input's fault and not the program's."""


class ConfigurationError(LoraLightningError):
    """A value in the YAML or on the command line is unknown or out of range."""


class DataError(LoraLightningError):
    """A data file is missing, malformed or contradicts itself; names the file and the row."""


class BackboneError(LoraLightningError):
    """The pretrained model cannot be found or is not of the right kind."""


class CheckpointError(LoraLightningError):
    """A checkpoint is incomplete, damaged or belongs to another model."""


class UnreadableError(CheckpointError):
    """A checkpoint may be whole, but cannot be read at the moment."""


class TrainingError(LoraLightningError):
    """Training cannot go on, for example because the loss is not a number."""


class TrainingStopped(BaseException):  # a signal raises it anywhere, and nothing else may catch it
    """Training was asked to stop and has saved its last step, or had nothing to save.

    Args:
        asked: The signal.
        step: Optimizer steps that are saved; `None` outside training.
        main_process: Whether this is the process that speaks for all of its machine.
        alone: Whether other processes may go on, because this one did not agree with them to stop.
    """

    def __init__(self, asked: signal.Signals, step: int | None, main_process: bool, alone: bool = False) -> None:
        super().__init__(asked, step, main_process, alone)
        self.asked = asked
        self.step = step
        self.main_process = main_process
        self.alone = alone
        self.how_to_go_on = ""  # set where the run's folder is known

    def __str__(self) -> str:
        """Says what happened and how to go on."""
        hint = f"; {self.how_to_go_on}" if self.how_to_go_on else ""
        done = "while nothing was to be saved" if self.step is None else f"after step {self.step}, which is saved"
        return f"stopped by {self.asked.name} {done}{hint}"


class RunFinished(Exception):  # noqa: N818  # nothing is wrong
    """There is nothing to go on with: the run is finished."""


class VerificationError(LoraLightningError):
    """What was trained fails a check, for example because merging changes what the model says."""


def nearest(name: str, allowed: Iterable[str], limit: int = 3) -> str:
    """Words the remedy for an unknown name.

    Args:
        name: What the user wrote.
        allowed: The names that exist.
        limit: How many suggestions to give at most.

    Returns:
        `"did you mean 'a' or 'b'?"`, or the full list of names where nothing is near.
    """
    names = sorted(set(allowed))
    close = get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"the choices are {', '.join(names)}."
