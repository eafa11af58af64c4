"""What can be wrong with a user's input: each error says what it was, what is allowed, how to mend it.

`lora_lightning.main` prints these as one line without a traceback and exits with status 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


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


class TrainingError(LoraLightningError):
    """Training cannot go on, for example because the loss is not a number."""


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
