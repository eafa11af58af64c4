"""Rows of what a user waits for before anything happens: help, and the first step of a training."""

import sys
from dataclasses import replace
from pathlib import Path

from comparison.kept import kept
from comparison.row import Limit, Row, Rows, Side, seconds_to_first_step, whole_seconds
from comparison.settings import Settings, program
from comparison.training_rows import our_classifier, peer_classifier
from comparison.turns import run_side

IMPORTS = (sys.executable, "-c", "import torch, transformers, peft")


def help_of_program(settings: Settings) -> Row:
    """`lora-lightning --help`."""
    del settings
    return Row("`lora-lightning --help`", "s", (Side("ours", program("--help"), whole_seconds),))


def help_of_fit(settings: Settings) -> Row:
    """`lora-lightning fit --help`."""
    del settings
    ours = Side("ours", program("fit", "--help"), whole_seconds)
    return Row("`lora-lightning fit --help`", "s", (ours,), goal=2.0)


def our_start(settings: Settings, tokens: str | Path) -> Side:
    """The first step on CLINC150, with the tokens in a folder, where an earlier start may have left them."""
    side = our_classifier(settings, "float32", 0.1)
    command = (*side.command, "--trainer.max_steps=1", f"--data.cache_dir={tokens}")
    return replace(side, name="ours", command=command, value=seconds_to_first_step)


def peer_start(settings: Settings, tokens: str | Path) -> Side:
    """The peer's first step; it keeps its tokens as a dataset on disk, as `Dataset.map` does."""
    side = peer_classifier(settings, "trainer_clinc150", "float32", "--cache", str(tokens), "--steps", "1")
    return replace(side, name="Trainer + PEFT", value=seconds_to_first_step)


def after_a_start(settings: Settings, name: str, side: Side) -> Path:
    """A folder with the tokens that a start left there; `{tokens}` in its command becomes the folder."""

    def start(folder: Path) -> None:
        command = tuple(word.replace("{tokens}", str(folder)) for word in side.command)
        run_side(replace(side, command=command))

    return kept(settings, name, start)


def first_step(settings: Settings) -> Row:
    """From the start of the process to the end of the first step on CLINC150; both sides tokenize."""
    peer, ours = peer_start(settings, "{scratch}/tokens"), our_start(settings, "{scratch}/tokens")
    limit = Limit(Side("imports that both need, s", IMPORTS, whole_seconds), seconds_to_first_step)
    return Row("start of the process to its first step, CLINC150, both tokenize", "s", (ours,), (peer,), None, limit)


def first_step_warm(settings: Settings) -> Row:
    """The same after an earlier start of each side, whose tokens it finds."""
    ours = our_start(settings, after_a_start(settings, "our_tokens", our_start(settings, "{tokens}")))
    peer = peer_start(settings, after_a_start(settings, "peer_tokens", peer_start(settings, "{tokens}")))
    limit = Limit(Side("imports that both need, s", IMPORTS, whole_seconds), seconds_to_first_step)
    title = "start of the process to its first step, CLINC150, tokens of an earlier start on both sides"
    return Row(title, "s", (ours,), (peer,), 0.9, limit)


def second_start(settings: Settings) -> Row:
    """From the start of the process to the end of the first step on CLINC150, with the tokens of an earlier start."""
    tokens = after_a_start(settings, "our_tokens", our_start(settings, "{tokens}"))
    warm = replace(our_start(settings, tokens), name="a second start")
    cold = replace(our_start(settings, "{scratch}/tokens"), name="the first start")
    return Row("start to the first step, CLINC150, tokens cached beside not cached", "s", (warm,), (cold,))


ROWS: Rows = {
    "help": help_of_program,
    "fit_help": help_of_fit,
    "first_step": first_step,
    "first_step_warm": first_step_warm,
    "second_start": second_start,
}
