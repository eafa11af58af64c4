"""One table of exit statuses for every command, and names suggested for a misspelt one."""

import signal
from pathlib import Path

import pytest

from lora_lightning.errors import (
    CheckpointError,
    ConfigurationError,
    RunFinished,
    TrainingError,
    TrainingStopped,
    VerificationError,
    exit_status,
    suggest_names,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (RunFinished("the run is finished", Path("run")), 0),
        (ValueError("a bug"), 1),
        (KeyError("a bug"), 1),
        (ConfigurationError("r is 0."), 2),
        (CheckpointError("damaged."), 2),
        (TrainingError("the disk is full."), 2),
        (VerificationError("merging changes the outputs."), 3),
        (TrainingStopped(signal.SIGTERM, 3, main_process=True), 75),
        (TrainingStopped(signal.SIGUSR1, 3, main_process=True), 75),
        (TrainingStopped(signal.SIGTERM, 3, main_process=False), 0),
        (TrainingStopped(signal.SIGTERM, 3, main_process=False, alone=True), 75),
        (TrainingStopped(signal.SIGINT, 3, main_process=True), 130),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_the_exit_status_of_an_error(error: BaseException | None, status: int) -> None:
    assert exit_status(error) == status


def test_similar_names_come_first_and_all_names_if_none_is_similar() -> None:
    assert suggest_names("qery", ["query", "key", "value"]) == "did you mean 'query'?"  # 'key' is noise beside it
    assert suggest_names("quey", ["que", "key", "value"]) == "did you mean 'que'?"
    assert suggest_names("ky", ["key", "any"]) == "did you mean 'key'?"
    assert suggest_names("zzz", ["query", "key"]) == "the choices are key, query."
