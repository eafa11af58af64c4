"""The last pass of a study: times with the adapter and merged, none that were measured in company."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from lora_lightning import train
from lora_lightning.cli.main import main
from lora_lightning.errors import TrainingError
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies import trial_timings
from lora_lightning.studies.journal import TrialStatus
from lora_lightning.studies.open_study import OpenStudy, open_study
from lora_lightning.studies.study_run import judge_study
from lora_lightning.studies.trial_measurements import COSTS
from lora_lightning.studies.trial_numbers import TIMINGS, read_numbers
from lora_lightning.studies.trial_timings import LOCK, round_seconds, time_inference, time_trials
from lora_lightning.tasks import PlantedRankTask
from tests.studies.small_study import BASE, save_study

INFERENCE = {f"inference_ms_{kind}_batch_{size}" for kind in ("adapter", "merged") for size in (1, 32)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
    return tmp_path


def test_the_last_pass_times_every_tested_trial_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0], costs=["inference_ms_merged_batch_1"])
    assert main(["study", "run", str(path), "--timings"]) == 0
    assert "timed:   r = 4, seed 0: seconds_per_step" in capsys.readouterr().out
    folder = here / "lightning_logs/studies/small"
    study = open_study(folder)
    results = judge_study(study).results
    assert results.costs == ["inference_ms_merged_batch_1"]
    for each in results.configurations:
        assert each.measurements.keys() >= {*INFERENCE, "seconds_per_step", "wall_seconds"}
        # Which of the two is faster is up to what else this machine does.
        assert all(0 < each.mean_of(f"inference_ms_adapter_batch_{rows}") < 1000 for rows in (1, 32))
    trial = study.plan.trials[0]
    times, costs = (read_numbers(study.folder.run(trial) / name) for name in (TIMINGS, COSTS))
    assert results.configuration("r = 2").measurements["seconds_per_step"][0] == times["seconds_per_step"]
    assert times["seconds_per_step"] != costs["seconds_per_step"]
    written = json.loads((study.folder.run(trial) / TIMINGS).read_text())
    assert written == {**times, "device": RunRecord.load(study.folder.run(trial)).device, "device_name": None}
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {trial.id for trial in study.plan.trials}
    record = RunRecord.load(study.folder.run(trial))
    assert [len(record.curves["test/loss"].steps), record.metric("test/loss")] == [
        1,
        pytest.approx(record.curves["test/loss"].values[0]),
    ]  # the pass logs nothing
    assert time_trials(study) == {}  # nothing is timed twice


def test_times_in_company_are_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])
    assert main(["study", "run", str(path)]) == 0
    study = open_study(here / "lightning_logs/studies/small")
    monkeypatch.setattr(trial_timings, "time_steps", lambda *_: ({"seconds_per_step": 0.5}, {"device": "cpu"}))
    monkeypatch.setattr(trial_timings, "time_inference", lambda *_: {})
    statuses = study.statuses()
    problems: list[str] = []

    def others(status: TrialStatus) -> dict[str, TrialStatus]:
        return {**statuses, "other": status}

    for status in (TrialStatus("running"), TrialStatus("finished", 0.1, ended_at=time.time() + 60)):
        monkeypatch.setattr(OpenStudy, "statuses", lambda _, status=status: others(status))
        assert time_trials(study, lambda *found: problems.append(found[2])) == {}
    assert problems == 4 * ["another run of the study was training, which slows it down"]
    assert not list(study.folder.path.glob(f"*/{TIMINGS}"))
    monkeypatch.setattr(OpenStudy, "statuses", lambda _: others(TrialStatus("finished", ended_at=time.time() - 60)))
    interrupted = study.folder.path / ".claims/other.json"  # began and was killed meanwhile
    interrupted.touch()
    os.utime(interrupted, (time.time() + 60, time.time() + 60))
    assert time_trials(study) == {}
    interrupted.unlink()
    assert len(time_trials(study)) == 2


def test_trials_without_times_are_no_success(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])
    with monkeypatch.context() as patch:
        patch.setattr(OpenStudy, "is_alone", lambda *_: False)
        assert main(["study", "run", str(path), "--timings"]) == 3
    printed = capsys.readouterr()
    assert "2 trials have no times, the first one (r = 2, seed 0) because another run of the study was" in printed.err
    assert "report:" in printed.out

    def refuse(lock: FileLock, *_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", lock.lock_file)

    with monkeypatch.context() as patch:
        patch.setattr(trial_timings.FileLock, "acquire", refuse)
        with pytest.raises(TrainingError, match=r"timings.lock cannot be written \(Read-only file system\)"):
            time_trials(open_study(here / "lightning_logs/studies/small"))


def test_one_process_times_at_a_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_study(here, axes={"model.lora.r": [4]}, seeds=[0])
    assert main(["study", "run", str(path)]) == 0
    study = open_study(here / "lightning_logs/studies/small")

    def steps(*_: Any) -> tuple[dict[str, float], dict[str, str]]:
        with pytest.raises(Timeout):
            FileLock(study.folder.path / LOCK, is_singleton=False).acquire(timeout=0)
        return {"seconds_per_step": 1.0}, {"device": "cpu"}

    monkeypatch.setattr(trial_timings, "time_steps", steps)
    monkeypatch.setattr(trial_timings, "time_inference", lambda *_: {})
    assert len(time_trials(study)) == 1


def test_inference_is_timed_with_the_adapter_and_without_its_layers(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = train(BASE, {"trainer.max_steps": 2})
    seen: list[tuple[int, bool]] = []
    evaluate = PlantedRankTask.evaluate

    def watched(task: PlantedRankTask, batch: dict[str, torch.Tensor]) -> Any:
        has_adapter = any("lora_A" in name for name, _ in task.named_parameters())
        seen.append((len(batch["inputs"]), has_adapter))
        assert not task.training
        assert not torch.is_grad_enabled()
        return evaluate(task, batch)

    monkeypatch.setattr(PlantedRankTask, "evaluate", watched)
    assert time_inference(record).keys() == INFERENCE
    seen = seen[: 2 * 18 * (trial_timings.ROUNDS + 1)]  # what follows is the test itself
    for has_adapter in (True, False):
        assert seen.count((1, has_adapter)) == 16 * (trial_timings.ROUNDS + 1)
        assert seen.count((32, has_adapter)) == 2 * (trial_timings.ROUNDS + 1)


def test_the_first_round_is_not_timed() -> None:
    pauses = iter([0.2, *[0.0] * 100])
    seconds = list(round_seconds(lambda _: time.sleep(next(pauses)), [{}], torch.device("cpu")))
    assert len(seconds) == trial_timings.ROUNDS
    assert max(seconds) < 0.2
