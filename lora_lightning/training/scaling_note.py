"""Notices a rank that the command line changes without lora_alpha, which changes the scaling of the updates."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

RANK, ALPHA = "--model.lora.r", "--model.lora.lora_alpha"


def scaling_note(options: Any, words: Sequence[str], parse: Callable[[list[str]], Any]) -> str:
    """Says how a changed rank changes the scaling, lora_alpha / r, or with `use_rslora` lora_alpha / sqrt(r).

    Args:
        options: The parsed options.
        words: The command line.
        parse: Parses a command line.

    Returns:
        A sentence; empty if the rank is that of the configs, or lora_alpha is given too.
    """
    lora = options.model.init_args.get("lora")
    if lora is None or lora.adalora is not None or not _is_given(words, RANK) or _is_given(words, ALPHA):
        return ""
    if any(_is_pipe(word.removeprefix("--config=")) for word in words):  # it can be read only once
        return ""
    before = parse(list(without_option(words, RANK))).model.init_args.get("lora")
    if before is None or before.r == lora.r or min(before.r, lora.r) < 1:  # the latter is refused later
        return ""
    root = math.sqrt if lora.use_rslora else float
    scaling, former = lora.lora_alpha / root(lora.r), before.lora_alpha / root(before.r)
    return (
        f"model.lora.r is {lora.r} instead of {before.r} with the same lora_alpha {lora.lora_alpha:g}, so updates are "
        f"scaled by {scaling:.3g} instead of {former:.3g}; {ALPHA} {former * root(lora.r):.6g} keeps the scaling"
    )


def without_option(words: Sequence[str], name: str) -> Iterator[str]:
    """Yields the words of a command line without an option and its value.

    Args:
        words: The command line.
        name: The option.
    """
    is_value = False
    for word in words:
        if not is_value and not _is_given([word], name):
            yield word
        is_value = not is_value and _is_given([word], name) and "=" not in word


def _is_pipe(word: str) -> bool:
    try:
        return Path(word).is_fifo()
    except (OSError, ValueError):  # no name of a file
        return False


def _is_given(words: Sequence[str], name: str) -> bool:
    names = (name, name.replace("--model.", "--model.init_args."))
    return any(word.partition("=")[0] in names for word in words)
