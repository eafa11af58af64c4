"""What a worker takes from a finished run."""

import math
import signal
from pathlib import Path

import pytest
import torch

from lora_lightning import RunRecord
from lora_lightning.errors import TrainingError, TrainingStopped, TrialsFailed
from lora_lightning.studies import worker
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.worker import Worker, lost_gpu, objective_of
from tests.studies.test_retry_failed import start


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_metric_that_is_not_finite_or_missing_fails_the_trial(value: float | None) -> None:
    metrics = {"val": {"f1": 0.5} if value is None else {"f1": 0.5, "loss": value}}
    record = RunRecord(Path("run"), "finished", metrics=metrics)
    assert objective_of(record, "val/f1") == 0.5
    with pytest.raises(TrialsFailed, match="the run run has no finite val/loss"):
        objective_of(record, "val/loss")
    with pytest.raises(TrialsFailed, match="no finite test/f1"):
        objective_of(record, "test/f1")


@pytest.fixture
def study(tmp_path: Path) -> OpenStudy:
    return start(tmp_path, {"learning_rate": None, "seeds": [0]})


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def train(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "train_trial", train)


def lose_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """A GPU that answers with an error, or works."""

    def ones(*_: object, **__: object) -> torch.Tensor:
        if error is not None:
            raise error
        return torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "ones", ones)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), TrainingStopped(signal.SIGTERM, 3, main_process=True)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stop_counts_for_the_budget(error: BaseException, study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(type(error)):
        Worker(study).run_all()
    assert [status.state for status in study.statuses().values()] == ["interrupted", "waiting"]
    (seconds,) = study.journal.spent_seconds()
    assert seconds >= 0


def test_a_worker_without_its_gpu_fails_no_trial(study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    assertion = RuntimeError("CUDA error: device-side assert triggered")
    fail_with(monkeypatch, assertion)
    lose_gpu(monkeypatch, assertion)
    with pytest.raises(
        TrainingError, match=r"CUDA refuses all further work .*device-side assert triggered.* repeat the"
    ):
        Worker(study).run_all()
    assert [status.state for status in study.statuses().values()] == ["interrupted", "waiting"]


@pytest.mark.parametrize("answer", [None, torch.OutOfMemoryError("CUDA out of memory")], ids=["works", "is full"])
def test_a_gpu_that_works_or_is_full_is_not_lost(answer: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost_gpu(RuntimeError("wrong shape")) is None  # without a GPU
    lose_gpu(monkeypatch, answer)
    assert lost_gpu(RuntimeError("wrong shape")) is None
