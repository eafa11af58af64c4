"""`lora-lightning study run`, `status` and `report` on runs of a fraction of a second."""

import csv
import gc
import html
import json
import re
import shutil
import signal
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
import yaml
from lightning import Trainer
from safetensors.torch import load_file

from lora_lightning import RunRecord, train
from lora_lightning.cli.main import main
from lora_lightning.cli.study_run import EPILOG
from lora_lightning.cli.study_work import check_devices, own_gpu, visible_gpus
from lora_lightning.errors import TrialsFailed
from lora_lightning.studies import worker
from lora_lightning.studies.open_study import open_study, start_study
from lora_lightning.studies.plan import plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.study_run import judge_study, warn_about_loggers
from lora_lightning.studies.trial_measurements import COSTS
from lora_lightning.studies.trial_numbers import read_numbers
from lora_lightning.studies.trial_runs import CheckedStudy
from lora_lightning.tasks import PlantedRankTask
from tests.conftest import TinyBackbone
from tests.studies.small_study import BASE, save_study
from tests.tiny_data import save_tiny_squad, save_tiny_table
from tests.tiny_glue import save_tiny_glue

Step = Callable[..., torch.Tensor]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and reports without figures, which take seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
    return tmp_path


def run(path: Path, *words: str) -> int:
    return main(["study", "run", str(path), *words])


def patch_step(monkeypatch: pytest.MonkeyPatch, before: Callable[[PlantedRankTask], None]) -> None:
    step: Step = PlantedRankTask.training_step

    def patched(task: PlantedRankTask, batch: Any, batch_idx: int) -> torch.Tensor:
        before(task)
        return step(task, batch, batch_idx)

    monkeypatch.setattr(PlantedRankTask, "training_step", patched)


def test_a_study_ends_in_an_answer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(here)
    assert run(path, "--dry-run") == 0
    printed = capsys.readouterr()
    assert "r = 4 (reference)" in printed.out
    assert "6 runs, in lightning_logs/studies/small" in printed.out
    assert not (here / "lightning_logs").exists()

    assert run(path) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    folder = here / "lightning_logs/studies/small"
    study = open_study(folder)
    assert {status.state for status in study.statuses().values()} == {"finished"}
    results = judge_study(study).results
    assert [each.name for each in results.configurations] == ["r = 1", "r = 2", "r = 4"]
    for each in results.configurations:
        assert each.values.keys() == each.outcomes.keys() == {0, 1}
        assert each.mean_of("trainable_parameters") == 14 * float(each.settings["model.lora.r"])  # type: ignore[arg-type]
        assert each.mean_of("peak_memory_bytes") > 50e6
        assert 0 < each.mean_of("seconds_per_step") < 10
        assert each.curves.keys() == {"train/loss", "val/loss"}
        assert each.mean_of("trainable_share") == each.mean_of("trainable_parameters") / each.mean_of(
            "total_parameters"
        )
        r = float(each.settings["model.lora.r"])  # type: ignore[arg-type]
        assert 1 / r <= each.mean_of("rank_utilization") <= 1
        assert each.mean_of("rank_utilization") == pytest.approx(each.mean_of("effective_rank") / r)
    assert results.sequence == ("r = 2", "r = 1")
    assert "report:      lightning_logs/studies/small/report/report.html" in printed.out
    assert json.loads((folder / "report/analysis.json").read_text())["reference"] == "r = 4"

    table = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    assert [row["trial"] for row in table] == [trial.id for trial in study.plan.trials]
    for row in table:
        each = results.configuration(row["configuration"])
        assert row["test/loss"] == each.values[row["seed"]]
        assert row["r"] == row["lora_alpha"] == each.settings["model.lora.r"]
        assert row["peak_memory_bytes"] == each.measurements["peak_memory_bytes"][row["seed"]]
        assert (row["state"], row["is_tested"], row["error"]) == ("finished", True, None)
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines == [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in table]

    for trial in study.plan.trials:
        again = train(study.folder.run(trial) / "config.yaml", {"trainer.logger.version": None})
        assert again.metrics == RunRecord.load(study.folder.run(trial)).metrics  # an ordinary run, bit for bit
        break

    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.ckpt")}
    assert run(path) == 0  # nothing is trained again
    assert files == {file: file.stat().st_mtime_ns for file in folder.rglob("*.ckpt")}
    assert "6 of 6 trials are finished" in capsys.readouterr().out
    assert main(["study", "status", str(folder)]) == 0
    assert "6 of 6 trials are finished" in capsys.readouterr().out


def test_the_recommended_config_trains(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[3], margin=100.0)
    assert run(path) == 0
    config = here / "lightning_logs/studies/small/recommended.yaml"
    assert config.read_text().startswith("# r = 4: recommended by the study small\n")  # one seed proves nothing
    assert "not enough evidence" in capsys.readouterr().out
    assert main(["fit", "--config", str(config)]) == 0
    record = RunRecord.load(here / "lightning_logs/small_recommended/version_0")
    (trial,) = (here / "lightning_logs/studies/small").glob("r_4_seed_3_*")
    assert record.metrics == RunRecord.load(trial).metrics


def test_a_warning_of_all_trials_is_printed_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(task: PlantedRankTask) -> None:
        warnings.warn("all of them", stacklevel=1)
        warnings.warn(f"rank {task.lora and task.lora.r}", stacklevel=1)

    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, warn)
        assert run(path) == 0
    printed = capsys.readouterr().err
    assert [printed.count(text) for text in ("all of them", "rank 2", "rank 4")] == [1, 1, 1]


def test_a_stopped_study_is_resumed_and_grows(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, lambda task: signal.raise_signal(signal.SIGTERM) if task.trainer.global_step == 5 else None)
        assert run(path) == 75
    assert f"after step 6, which is saved; resume with: lora-lightning study run {path}" in capsys.readouterr().err
    folder = here / "lightning_logs/studies/small"
    assert main(["study", "status", str(folder)]) == 0
    assert "0 of 2 trials are finished" in capsys.readouterr().out
    assert main(["study", "report", str(folder)]) == 2
    assert "none of the 2 trials" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch_step(
            patch, lambda task: signal.raise_signal(signal.SIGINT) if "r_4" in str(task.trainer.log_dir) else None
        )
        assert run(path) == 130
    assert "resuming from" in capsys.readouterr().out
    assert main(["study", "report", str(folder)]) == 0
    assert "The report is partial: 1 of 2 trials have not finished." in capsys.readouterr().out
    assert run(path) == 0
    plain = train(BASE, {"model.lora.r": 2, "model.lora.lora_alpha": 2, "seed_everything": 0})
    (resumed,) = folder.glob("r_2_seed_0_*")
    left, right = (load_file(each / "adapter/adapter_model.safetensors") for each in (resumed, plain.folder))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert run(save_study(here, axes={"model.lora.r": [1, 2, 4]}, seeds=[0])) == 0
    assert len(list(folder.glob("r_*"))) == 3
    assert run(save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])) == 2
    assert "has 1 runs that the study no longer contains" in capsys.readouterr().err


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_worker_resumes_a_trial_under_another_path_of_its_folder(
    is_moved: bool, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, lambda task: signal.raise_signal(signal.SIGTERM) if task.trainer.global_step == 5 else None)
        assert run(path) == 75
    folder = here / "lightning_logs/studies/small"
    if is_moved:
        folder = folder.rename(here / "moved")
    capsys.readouterr()
    assert main(["study", "work", str(folder)]) == 0
    assert "resuming from" in capsys.readouterr().out
    plain = train(BASE, {"model.lora.r": 2, "model.lora.lora_alpha": 2, "seed_everything": 0})
    (resumed,) = folder.glob("r_2_seed_0_*")
    assert RunRecord.load(resumed).steps == 8
    left, right = (load_file(each / "adapter/adapter_model.safetensors") for each in (resumed, plain.folder))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_what_another_process_adds_meanwhile_is_run_and_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, two = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0]), {"model.lora.r": [2, 4]}
    folder = StudyFolder(Path("lightning_logs/studies/small"))

    def add_a_seed(task: PlantedRankTask) -> None:
        if len(open_study(folder.path).planned.study.seeds) == 1:
            plan = plan_study(read_study_file(save_study(here, axes=two, seeds=[0, 1])))
            start_study(plan, folder, CheckedStudy("test/loss", "val/loss", "r = 4", 2, 8, "rows"))

    with monkeypatch.context() as patch:
        patch_step(patch, add_a_seed)
        assert run(path) == 0
    printed = capsys.readouterr().out
    assert "done:    r = 4, seed 1" in printed
    assert "(4 of 4)" in printed
    assert "partial" not in printed
    with (folder.path / "results.csv").open() as file:
        assert [(row["seed"], row["state"]) for row in csv.DictReader(file)] == [(seed, "finished") for seed in "0011"]


def add_seed(here: Path, seed: int) -> StudyFolder:
    """Adds a seed to the small study, as `study run` does that is killed then."""
    folder = StudyFolder(Path("lightning_logs/studies/small"))
    plan = plan_study(read_study_file(save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[*range(seed + 1)])))
    with warnings.catch_warnings(action="ignore"):
        start_study(plan, folder, CheckedStudy("test/loss", "val/loss", "r = 4", 2, 8, "rows"))
    return folder


def test_a_worker_that_ends_a_study_leaves_no_older_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])
    assert run(path) == 0
    folder = add_seed(here, 1)
    capsys.readouterr()
    assert main(["study", "work", str(folder.path)]) == 0
    assert f"report:      {folder.report}/report.html" in capsys.readouterr().out
    rows = (folder.report / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 4
    add_seed(here, 2)
    assert main(["study", "work", str(folder.path), "--beside"]) == 0  # `study run` waits for it, and writes the report
    assert f"study report {folder.path}" in capsys.readouterr().out
    assert (folder.report / "results.csv").read_text().splitlines() == rows


def test_a_worker_without_the_data_begins_no_trial(
    here: Path, tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_table(here / "train.csv")
    data = {"train_file": "train.csv", "cache_dir": str(here / "cache"), "test_share": 0.2}
    base = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {"class_path": "TextClassificationDataModule", "init_args": data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
    }
    plan = plan_study(read_study_file(save_study(here, base=base, objective="accuracy")))
    folder = StudyFolder(here / "lightning_logs/studies/small")
    start_study(plan, folder, CheckedStudy("test/accuracy", "val/accuracy", "r = 4", 1, 9, "rows"))
    (elsewhere := here / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["study", "work", str(folder.path)]) == 2
    error = capsys.readouterr().err
    assert "this worker cannot train the configuration 'r = 1' of the study: " in error
    assert "train.csv" in error
    assert "start it in the working directory of `study run`" in error
    assert {status.state for status in open_study(folder.path).statuses().values()} == {"waiting"}


def test_a_worker_that_lacks_what_another_configuration_needs_begins_no_trial(
    here: Path, tiny_backbone: TinyBackbone, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_table(here / "train.csv")
    data = {"train_file": "train.csv", "cache_dir": str(here / "cache"), "test_share": 0.2}
    base = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {"class_path": "TextClassificationDataModule", "init_args": data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
    }
    axes = {"base": {"small": {"model.lora.r": 2}, "large": {"model.backbone": str(here / "gone")}}}
    study = save_study(here, base=base, axes=axes, derived=None, reference={"base": "small"}, objective="accuracy")
    plan = plan_study(read_study_file(study))
    folder = StudyFolder(here / "lightning_logs/studies/small")
    start_study(plan, folder, CheckedStudy("test/accuracy", "val/accuracy", "small", 1, 9, "rows"))
    assert main(["study", "work", str(folder.path)]) == 2
    error = capsys.readouterr().err
    assert "this worker cannot train the configuration 'large' of the study: " in error
    assert "the base models and the packages of all configurations" in error
    opened = open_study(folder.path)
    assert {status.state for status in opened.statuses().values()} == {"waiting"}
    for trial in opened.plan.trials:  # of which nothing is left to check
        if trial.configuration == "large":
            claim = opened.journal.claim_next([trial])
            assert claim is not None
            opened.journal.fail(claim, "no weights")
    assert [each.name for each in opened.configurations_left] == ["small"]


def test_a_study_of_which_nothing_is_tested_is_not_complete(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: PlantedRankTask) -> None:
        msg = "out of memory"
        raise RuntimeError(msg)

    rates = {"values": [0.01, 0.02], "seeds": [7]}
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0], learning_rate=rates)
    with monkeypatch.context() as patch:
        patch_step(patch, fail)
        assert run(path) == 3
    assert main(["study", "status", "lightning_logs/studies/small"]) == 0
    assert "4 failed; nothing is left to train, but nothing is tested" in capsys.readouterr().out


def test_the_report_is_written_before_trials_are_timed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_lightning.cli.study_run.print_timings", stop)
    assert run(save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0]), "--timings") == 130
    assert (here / "lightning_logs/studies/small/report/report.html").is_file()


def test_another_objective_and_another_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0], objective="accuracy", margin=None)
    assert run(path) == 2
    assert "Correct it in the YAML, or give --objective" in capsys.readouterr().err
    words = ["--objective=loss", "--name=other"]
    assert run(path, *words) == 2
    assert (
        "'loss' has no usual margin, and the study's margin is of accuracy; copy the study" in capsys.readouterr().err
    )
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0], objective="test/loss")
    with monkeypatch.context() as patch:
        patch_step(patch, lambda task: signal.raise_signal(signal.SIGTERM) if task.trainer.global_step == 5 else None)
        assert run(path, *words) == 75
    assert "study run small.yaml --objective=loss --name=other" in capsys.readouterr().err.replace(f"{here}/", "")
    assert run(path, *words) == 0
    assert open_study(here / "lightning_logs/studies/other").planned.study.name == "other"
    assert run(path, "--name=other", "--set=trainer.max_epochs=1") == 2
    assert "or give the study another name, such as with --name" in capsys.readouterr().err


def test_another_worker_prints_to_a_file(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0]), "--workers", "2") == 0
    folder = here / "lightning_logs/studies/small"
    assert {status.state for status in open_study(folder).statuses().values()} == {"finished"}
    printed = capfd.readouterr().out
    assert "other workers print to: lightning_logs/studies/small/worker_2.log\n" in printed
    assert printed.count("study folder:") == (folder / "worker_2.log").read_text().count("study folder:") == 1
    assert printed.count("done: ") == 2  # of both workers


def test_each_worker_has_a_gpu_of_its_own() -> None:
    assert visible_gpus({}, 3) == ["0", "1", "2"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "5,GPU-ab,7"}, 3) == ["5", "GPU-ab", "7"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, 0) == []
    gpus = ["5", "GPU-ab"]
    assert [own_gpu(gpus, number)["CUDA_VISIBLE_DEVICES"] for number in range(4)] == ["5", "GPU-ab", "5", "GPU-ab"]
    assert own_gpu([], 1) == {}


def test_further_workers_are_refused_for_a_gpu_that_they_would_not_see(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "device_ids", [1])
    path = save_study(here, axes={"model.lora.r": [4]})
    assert run(path, "--dry-run") == 0
    assert run(path, "--dry-run", "--workers=2") == 2
    message = "trainer.devices asks for the GPU 1, but --workers 2 gives each worker one GPU, in turn; set "
    assert message in capsys.readouterr().err
    check_devices(2, 0)


def test_limits_in_time_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(here, axes={"model.lora.r": [4]}, options={"trainer.max_time": "01:00:00:00"})
    assert run(path) == 0
    assert "results depend on what else a machine does" in capsys.readouterr().err
    audit = judge_study(open_study(here / "lightning_logs/studies/small"))
    assert any("when they are validated (trainer.max_time)" in note for note in audit.notes)


def test_a_base_that_changes_while_a_study_runs_changes_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = here / "base.yaml"
    base.write_text(yaml.safe_dump(BASE))

    def edit(task: PlantedRankTask) -> None:
        base.write_text(base.read_text().replace("max_epochs: 2", "max_epochs: 5"))

    path = save_study(here, base=str(base), axes={"model.lora.r": [2, 4]}, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, edit)
        assert run(path) == 0
    assert "max_epochs: 5" in base.read_text()
    records = [RunRecord.load(each) for each in (here / "lightning_logs/studies/small").glob("r_*")]
    assert [record.steps for record in records] == [8, 8]


def test_a_study_is_found_from_its_own_folder_and_under_another_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0])) == 0
    folder = (here / "lightning_logs/studies/small").rename(here / "moved")
    for place in (".", str(folder)):
        monkeypatch.chdir(folder)
        capsys.readouterr()
        assert main(["study", "status", place]) == 0
        assert "2 of 2 trials are finished" in capsys.readouterr().out
    (folder / "journal.jsonl").unlink()
    for command in ("status", "work", "report"):
        assert main(["study", command, str(folder)]) == 2
        assert "the trials of the study small are gone from" in capsys.readouterr().err
    assert not (folder / "journal.jsonl").exists() or not (folder / "journal.jsonl").read_text()


def test_models_of_earlier_trials_are_freed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    def count(task: PlantedRankTask) -> None:
        if task.trainer.global_step == 0:
            alive.append(sum(isinstance(each, PlantedRankTask) for each in gc.get_objects()))

    path = save_study(here, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, count)
        assert run(path) == 0
    assert len(set(alive)) == 1


def test_a_failing_trial_stops_nothing_else(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(task: PlantedRankTask) -> None:
        if task.lora is not None and task.lora.r == 2:
            raise ZeroDivisionError("a bug of ours")

    path = save_study(here, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, fail)
        assert run(path) == 3
    printed = capsys.readouterr()
    expected = "1 of 3 trials failed, the first one (r = 2, seed 0) because ZeroDivisionError: a bug of ours"
    assert expected in printed.err
    assert "1 of 3 trials failed and are left out" in printed.out
    assert (
        "not enough evidence, 1 of 1 runs of r = 2 failed or have no result, no seed in common; missing" in printed.out
    )
    table = pyarrow.parquet.read_table(here / "lightning_logs/studies/small/results.parquet").to_pylist()
    assert [row["state"] for row in table] == ["finished", "failed", "finished"]
    assert table[1]["error"] == "ZeroDivisionError: a bug of ours"
    assert table[1]["test/loss"] is None
    assert main(["study", "work", str(here / "lightning_logs/studies/small")]) == 3
    printed = capsys.readouterr()
    assert "2 of 3 trials are finished, 1 failed" in printed.out
    assert expected in printed.err
    assert run(path) == 3  # it is not repeated unless asked for
    assert "training r = 2" not in capsys.readouterr().out
    assert run(path, "--retry_failed") == 0
    assert "done:    r = 2, seed 0" in capsys.readouterr().out


def test_a_finished_run_that_failed_is_trained_again_once_its_folder_is_deleted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(record: RunRecord, tag: str) -> float:
        msg = f"the run {record.folder} has no finite {tag}"
        raise TrialsFailed(msg)

    path = save_study(here, axes={"model.lora.r": [4]}, seeds=[0])
    with monkeypatch.context() as patch:
        patch.setattr(worker, "objective_of", fail)
        assert run(path) == 3
    (folder,) = Path("lightning_logs/studies/small").glob("r_4_*")
    expected = f"the run {folder} has no finite test/loss; to train it again, delete its folder {folder} first; fix the"
    assert expected in capsys.readouterr().err
    made = (folder / "config.yaml").stat().st_mtime_ns
    shutil.rmtree(folder)
    assert run(path, "--retry_failed") == 0
    assert (folder / "config.yaml").stat().st_mtime_ns > made


def test_a_full_disk_stops_the_worker(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(task: PlantedRankTask) -> None:
        raise OSError(28, "No space left on device", str(here / "file"))

    path = save_study(here, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, fill)
        assert run(path) == 2
    assert "No space left on device" in capsys.readouterr().err
    states = {status.state for status in open_study(here / "lightning_logs/studies/small").statuses().values()}
    assert states == {"interrupted", "waiting"}
    assert run(path) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": {"model.lora.rank": [1, 4]}, "reference": {"rank": 4}, "derived": None},
            "did you mean model.lora.r\\?",
        ),
        (
            {"axes": {"model.lora.r": [0, 4]}, "derived": None},
            "'r = 0' .* model.lora.r is 0, but it must be at least 1",
        ),
        ({"objective": "accuracy"}, "'accuracy' is not reported on a test split"),
        ({"margin": None}, "has no usual margin"),
        ({"options": {"trainer.fast_dev_run": True}}, "fast_dev_run writes no results"),
        (
            {"options": {"trainer.devices": 2, "trainer.strategy": "ddp"}},
            "would train in 2 processes, but a study trains each run in one",
        ),
        ({"direction": "higher"}, "the direction 'higher' contradicts 'loss'"),
        ({"options": {"trainer.limit_test_batches": 0}}, "trainer.limit_test_batches is 0, but a study compares"),
        (
            {"options": {"trainer.limit_test_batches": 0.001}},
            "limit_test_batches is 0.001, which is no batch of \\d+; l",
        ),
        ({"options": {"trainer.limit_val_batches": 0.001}}, "limit_val_batches is 0.001, which is no batch of \\d+; l"),
        (
            {"options": {"trainer.limit_train_batches": 0.0}},
            "limit_train_batches is 0, so that no run would be trained",
        ),
        ({"options": {"trainer.max_steps": 0}}, "trainer.max_steps is 0, so that no run would be trained"),
        (
            {"options": {"trainer.limit_val_batches": 0}, "learning_rate": {"values": [1e-3], "seeds": [7]}},
            "trainer.limit_val_batches is 0, but learning_rate chooses by the metric on validation rows",
        ),
        (
            {"options": {"trainer.limit_val_batches": 0.0}, "search": {"trials": 1, "seeds": [7]}},
            "but a search chooses",
        ),
    ],
)
def test_bad_input_is_a_sentence_before_anything_is_written(
    changes: dict[str, Any], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(save_study(here, **changes)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (here / "lightning_logs/studies").exists()


def test_another_base_runs_the_same_study(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text(yaml.safe_dump(BASE | {"trainer": {"max_steps": 2, "accelerator": "cpu"}}))
    path = save_study(here, base="nowhere.yaml", axes={"model.lora.r": [4]}, seeds=[0])
    assert run(path, "--base", str(here / "mine.yaml"), "--save_dir", "elsewhere") == 0
    (trial,) = (here / "elsewhere/small").glob("r_4_seed_0_*")
    assert RunRecord.load(trial).steps == 2
    assert read_numbers(trial / COSTS)["peak_memory_bytes"] > 0
    assert run(path, "--base", "missing.yaml") == 2
    assert "there is no base config missing.yaml" in capsys.readouterr().err


def test_data_without_a_test_split_is_refused(
    here: Path, tiny_backbone: TinyBackbone, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {
            "class_path": "TextClassificationDataModule",
            "init_args": {"train_file": str(save_tiny_table(here / "train.csv")), "cache_dir": str(here / "cache")},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
    }
    assert run(save_study(here, base=base, objective="accuracy")) == 2
    printed = capsys.readouterr().err
    assert "no test split with labels, but a study compares configurations on test rows; add test data" in printed
    assert "or set data.test_share, such as 0.2, to hold out training rows for test" in printed


def test_glue_is_tested_on_held_out_training_rows(
    here: Path, tiny_backbone: TinyBackbone, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"task_name": "mrpc", "data_dir": str(save_tiny_glue(here / "glue", "mrpc")), "allow_partial": True}
    base = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {"class_path": "GlueDataModule", "init_args": {**data, "cache_dir": str(here / "cache")}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
    }
    path = save_study(
        here, base=base, objective="accuracy", axes={"model.lora.r": [2, 4]}, derived=None, reference={"r": 4}
    )
    assert run(path) == 2
    assert "GLUE's test labels are not public; " in (error := capsys.readouterr().err)
    assert "set data.test_share, such as 0.2, to hold out training rows" in error
    assert run(path, "--set", "data.test_share=0.5") == 0
    assert "data: train 6 rows, val 12 rows, test 6 rows" in capsys.readouterr().out
    study = open_study(here / "lightning_logs/studies/small")
    records = [RunRecord.load(study.folder.run(trial)) for trial in study.plan.trials]
    assert len({record.data_fingerprint["test"] for record in records}) == 1  # the same rows for both seeds
    for each in judge_study(study).results.configurations:
        assert {len(outcomes) for outcomes in each.outcomes.values()} == {6}


def test_test_rows_on_which_the_epoch_is_chosen_are_named(
    here: Path, tiny_backbone: TinyBackbone, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {
        "model": {"class_path": "QuestionAnsweringTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {
            "class_path": "SquadV2DataModule",
            "init_args": {"data_dir": str(save_tiny_squad(here / "squad")), "max_length": 32, "doc_stride": 8},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "checkpoint": {"monitor": "val/f1", "mode": "max"},
    }
    path = save_study(here, base=base, objective="f1", axes={"model.lora.r": [2, 4]}, seeds=[0])
    note = "The rows of test are those of val, on which epochs and thresholds are chosen, so that the study's"
    assert run(path, f"--set=data.cache_dir={here / 'cache'}") == 0
    printed = capsys.readouterr()
    assert note in printed.err
    assert printed.out.count(f"note: {note}") == 1
    folder = here / "lightning_logs/studies/small"
    assert main(["study", "report", str(folder)]) == 0
    assert f"note: {note}" in capsys.readouterr().out
    assert note in html.unescape((folder / "report/report.html").read_text())
    assert note in " ".join(json.loads((folder / "report/analysis.json").read_text())["notes"])
    other = ["--set=data.test_share=0.3", "--save_dir=other"]
    assert run(path, "--dry-run", f"--set=data.cache_dir={here / 'cache'}", *other) == 0
    assert "rows of test are those" not in capsys.readouterr().err


def test_another_logger_is_not_dropped_silently(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = {
        "max_steps": 1,
        "accelerator": "cpu",
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}},
    }
    path = save_study(here, base=BASE | {"trainer": trainer}, axes={"model.lora.r": [4]}, seeds=[0])
    assert run(path, "--dry-run") == 0
    assert "the base config logs with CSVLogger, but a study logs each run with TensorBoard" in capsys.readouterr().err
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "x", "name": "y", "prefix": "z"}}
    plan = plan_study(read_study_file(save_study(here, base=BASE | {"trainer": {"logger": logger}})))
    with pytest.warns(UserWarning, match="the base config sets prefix of its logger, which a study leaves out"):
        warn_about_loggers(plan)


def test_a_reference_without_a_learning_rate_is_neither_waited_for_nor_recommended(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task: PlantedRankTask) -> None:
        if "r_4_rate" in str(task.trainer.log_dir):
            msg = "the loss diverged"
            raise ArithmeticError(msg)

    patch_step(monkeypatch, fail)
    rates = {"values": [0.01], "seeds": [5]}
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0], learning_rate=rates)
    assert run(path) == 3
    printed = capsys.readouterr().out
    assert "The report is partial" not in printed
    assert "(3 of 3)" in printed
    assert "note: r = 4: each learning rate has a failed run" in printed
    assert "Nothing is recommended: the reference r = 4 has no finished and tested run" in printed
    assert not (here / "lightning_logs/studies/small/recommended.yaml").exists()


@pytest.mark.parametrize("logger", [{"init_args": {"save_dir": "x"}}, [{"init_args": {}}], True, [True], 3])
def test_a_logger_without_a_class_ends_in_no_traceback(
    logger: object, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = {"max_steps": 1, "accelerator": "cpu", "logger": logger}
    path = save_study(here, base=BASE | {"trainer": trainer}, axes={"model.lora.r": [4]}, seeds=[0])
    status = run(path, "--dry-run")
    printed = capsys.readouterr().err
    assert status in {0, 2}
    assert "Traceback" not in printed
    assert status == 0 or len(printed.strip().splitlines()) == 1


def test_the_example_in_the_help_is_a_study(here: Path) -> None:
    text = re.search(r"<< END\n(.*?)  END", EPILOG, re.DOTALL)
    assert text
    (here / "ranks.yaml").write_text(textwrap.dedent(text[1]))
    plan = plan_study(read_study_file(here / "ranks.yaml"))
    assert [each.name for each in plan.configurations] == ["r = 4", "r = 8", "r = 16"]
    assert len(plan.trials) == 9


def test_learning_rates_are_chosen_before_anything_is_tested(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"values": [1e-5, 0.02], "seeds": [5]}
    path = save_study(here, axes={"model.lora.r": [2, 4]}, seeds=[0], learning_rate=rates)
    assert run(path) == 0
    printed = capsys.readouterr().out
    assert "done:    r = 2, learning rate 0.02, seed 5: val/loss" in printed
    assert (
        "note: Learning rates, chosen on validation, with a seed of their own: 0.02 for r = 2, 0.02 for r = 4."
        in printed
    )
    folder = here / "lightning_logs/studies/small"
    records = {each.name: RunRecord.load(each) for each in folder.glob("r_*")}
    assert len(records) == 6
    assert {name for name, record in records.items() if "test" in record.metrics} == {
        name for name in records if "seed_0" in name
    }
    study = open_study(folder)
    results = judge_study(study).results
    assert [each.values.keys() for each in results.configurations] == [{0}, {0}]
    table = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    assert [(row["learning_rate"], row["seed"], row["is_tested"]) for row in table] == [
        *[(rate, 5, False) for _ in range(2) for rate in rates["values"]],
        *[(0.02, 0, True) for _ in range(2)],
    ]
    assert [row["test/loss"] is not None for row in table] == [row["is_tested"] for row in table]
    assert all(row["val/loss"] > 0 for row in table)
    assert run(path) == 0
    assert "training" not in capsys.readouterr().out.replace("training on", "")
    tried = study.plan.trials[0]
    shutil.rmtree(study.folder.run(tried))
    assert main(["study", "report", str(folder)]) == 0
    gone = "The folders of 1 run that helped to choose are gone, so that their cells in results.csv are empty: "
    assert f"{gone}{tried.title}." in capsys.readouterr().out
    again = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    assert (again[0]["trial"], again[0]["state"], again[0]["val/loss"]) == (tried.id, "finished", None)
    assert again[1:] == table[1:]
