"""Options that the user gave and nothing reads are named, once."""

from collections.abc import Container, Iterable
from inspect import signature
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.datamodules.base import VALIDATION


def warn_about_unused_options(module: Any, names: Iterable[str], why: str) -> None:
    """Names options of a data module that differ from their defaults although nothing reads them.

    It is no error: a run of an earlier release may have them in its `config.yaml`.

    Args:
        module: The data module, which keeps options under their names.
        names: Those that are not read.
        why: The reason, as a clause.
    """
    options = signature(type(module)).parameters
    for name in names:
        value = getattr(module, name)
        if name in options and value != options[name].default:
            rank_zero_warn(f"data.{name} is {value!r}, but nothing reads it, because {why}.")


def warn_about_unused_shares(module: Any, splits: Container[str]) -> None:
    """Names `validation_share` and `split_seed` where the data has a validation split of its own.

    Args:
        module: The data module; `test_share` holds out nothing if it is `None`.
        splits: Those that the data has, before anything is held out.
    """
    if VALIDATION not in splits:
        return
    warn_about_unused_options(module, ["validation_share"], "the data has validation rows of its own")
    if module.test_share is None:
        warn_about_unused_options(module, ["split_seed"], "no rows are held out")
