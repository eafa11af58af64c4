"""Workers of a study are killed at random moments, and a trial in a reused process equals `fit` of its config."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_kills import kill_workers, random_kills

from lora_lightning import RunRecord
from lora_lightning.cli.main import main
from lora_lightning.studies.open_study import open_study
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150


def test_workers_killed_at_random_moments_run_each_trial_once(tmp_path: Path) -> None:
    kills = random_kills(2, 6, random.Random(0))  # noqa: S311
    found = kill_workers(tmp_path, 2, kills, seeds=[0, 1], ranks=[2, 4])
    assert found["wrong"] == []
    assert found["kills"] >= 4
    assert found["trials that were resumed"]


METHODS: dict[str, dict[str, Any]] = {
    "query": {"model.lora.target_modules": ["query"]},
    "DoRA": {"model.lora.use_dora": True, "model.lora.target_modules": "attention"},
    "crash": {"model.lora.r": 3},
    "full": {"model.lora": None, "model.optimization.learning_rate": 1e-3},
    "all linear": {"model.lora.target_modules": "all-linear", "model.lora.lora_dropout": 0.1},
}


def test_the_fifth_trial_of_a_process_equals_fit_in_a_process_of_its_own(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SequenceClassificationTask.training_step

    def crash(task: SequenceClassificationTask, batch: Any, batch_idx: int) -> Any:
        if task.lora is not None and task.lora.r == 3:
            raise ZeroDivisionError("a crash in the middle of training")
        return step(task, batch, batch_idx)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
    monkeypatch.setattr(SequenceClassificationTask, "training_step", crash)
    base = {
        "model": {
            "class_path": "SequenceClassificationTask",
            "init_args": {
                "backbone": str(tiny_backbone("bert")),
                "base_dropout": 0.1,
                "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": ["query", "value"]},
            },
        },
        "data": {
            "class_path": "Clinc150DataModule",
            "init_args": {"data_dir": str(save_tiny_clinc150(tmp_path / "data")), "cache_dir": str(tmp_path / "cache")},
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "checkpoint": {"monitor": "val/in_scope_accuracy", "mode": "max"},
    }
    study = {
        "name": "methods",
        "base": base,
        "axes": {"method": METHODS},
        "seeds": [7],
        "objective": "in_scope_accuracy",
        "reference": "query",
    }
    Path("methods.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert main(["study", "run", "methods.yaml"]) == 3  # one of them crashes
    found = open_study(Path("lightning_logs/studies/methods"))
    runs = {trial.configuration: found.folder.run(trial) for trial in found.plan.trials}
    assert [status.state for status in found.statuses().values()] == ["finished"] * 2 + ["failed"] + ["finished"] * 2
    config = runs["all linear"] / "config.yaml"
    command = [sys.executable, "-m", "lora_lightning", "fit", f"--config={config}"]
    place = ["--trainer.logger.init_args.version=null", "--trainer.logger.init_args.name=alone"]
    place.append(f"--trainer.logger.init_args.save_dir={tmp_path}")
    ended = subprocess.run([*command, *place], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    alone = tmp_path / "alone/version_0"
    assert RunRecord.load(alone).metrics == RunRecord.load(runs["all linear"]).metrics
    adapter = "adapter/adapter_model.safetensors"
    assert (alone / adapter).read_bytes() == (runs["all linear"] / adapter).read_bytes()
