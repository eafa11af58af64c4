"""Rows of what a user waits for before anything happens: help, and the first step of a training."""

import sys

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


def first_step(settings: Settings) -> Row:
    """From the start of the process to the end of the first step on CLINC150; files and tokens are cached."""
    ours, peer = our_classifier(settings, "float32", 0.1), peer_classifier(settings, "trainer_clinc150", "float32")
    limit = Limit(Side("imports that both need, s", IMPORTS, whole_seconds), seconds_to_first_step)
    return Row(
        "start of the process to its first step, CLINC150",
        "s",
        (Side("ours", (*ours.command, "--trainer.max_steps=1"), seconds_to_first_step),),
        (Side("Trainer + PEFT", (*peer.command, "--steps", "1"), seconds_to_first_step),),
        0.9,
        limit,
    )


def second_start(settings: Settings) -> Row:
    """From the start of the process to the end of the first step on CLINC150, with the tokens of an earlier start."""
    words = (*our_classifier(settings, "float32", 0.1).command, "--trainer.max_steps=1", "--data.cache_dir")
    warm = Side("a second start", (*words, str(settings.work / "tokens")), seconds_to_first_step)
    cold = Side("the first start", (*words, "{scratch}/tokens"), seconds_to_first_step)
    print("  the start that caches the tokens", file=sys.stderr, flush=True)
    run_side(warm)
    return Row("start to the first step, CLINC150, tokens cached beside not cached", "s", (warm,), (cold,))


ROWS: Rows = {"help": help_of_program, "fit_help": help_of_fit, "first_step": first_step, "second_start": second_start}
