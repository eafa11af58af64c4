"""Workers beside `study run`."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from lora_lightning.cli import study_work
from lora_lightning.cli.study_work import describe_early_end, further_workers


@pytest.mark.parametrize(
    ("status", "is_stopping", "warns"),
    [
        (0, False, False),
        (3, False, False),
        (1, False, True),
        (2, False, True),
        (75, False, True),
        (130, False, True),
        (-9, False, True),
        (137, False, True),
        (0, True, False),
        (3, True, False),
        (75, True, False),
        (130, True, False),
        (-15, True, False),
        (1, True, True),
        (2, True, True),
        (-9, True, True),
    ],
)
def test_an_early_end_is_no_secret(status: int, is_stopping: bool, warns: bool) -> None:
    found = describe_early_end(status, Path("worker_2.log"), is_stopping=is_stopping)
    assert bool(found) is warns
    assert not warns or f"exit status {status}" in found
    assert not warns or "worker_2.log" in found


@pytest.mark.parametrize("is_stopping", [False, True])
def test_each_worker_that_ended_early_is_named(
    is_stopping: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter([75, 2])

    def start(*_: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", f"import os; os._exit({next(statuses)})"])

    monkeypatch.setattr(study_work, "start_worker", start)
    monkeypatch.setattr(subprocess.Popen, "terminate", lambda _: None)
    warned: list[str] = []
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_warn", warned.append)

    def end() -> None:
        if is_stopping:
            raise KeyboardInterrupt

    with nullcontext() if not is_stopping else pytest.raises(KeyboardInterrupt), further_workers(tmp_path, 2):
        end()
    assert "exit status 2" in warned[-1]
    assert "worker_3.log" in warned[-1]
    assert ["exit status 75" in each for each in warned[:-1]] == ([] if is_stopping else [True])
