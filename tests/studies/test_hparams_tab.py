"""TensorBoard's HParams tab: the settings and the final metrics of every trial, read from event files."""

from pathlib import Path

import pytest
from tensorboard.plugins.hparams import api_pb2

from lora_lightning.cli.main import main
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.open_study import open_study
from tests.loggers.events import hparams, scalars
from tests.studies.small_study import save_study


def test_each_trial_shows_its_settings_and_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
    rates = {"values": [0.001, 0.02], "seeds": [5]}
    method = {"LoRA": {"model.lora.use_rslora": False}, "rsLoRA": {"model.lora.use_rslora": True}}
    path = save_study(
        tmp_path,
        axes={"method": method, "model.lora.r": [2, 4]},
        seeds=[0],
        learning_rate=rates,
        reference={"method": "LoRA", "r": 4},
    )
    assert main(["study", "run", str(path)]) == 0
    study = open_study(tmp_path / "lightning_logs/studies/small")
    lists = []
    for trial in study.plan.trials:
        record = RunRecord.load(study.folder.run(trial))
        found, values = hparams(record.folder), scalars(record.folder)
        assert found.statuses == [api_pb2.STATUS_SUCCESS]
        expected = {
            "configuration": trial.configuration,
            "method": trial.configuration.partition(",")[0],
            "r": float(trial.options["model.lora.r"]),
            "lora_alpha": float(trial.options["model.lora.r"]),
            "learning_rate": pytest.approx(trial.options["model.optimization.learning_rate"]),
            "seed": float(trial.seed),
        }
        assert {name: found.settings[name] for name in expected} == expected
        assert all(found.columns[name] for name in expected)  # the tab shows them first
        results = {tag: value for tag, value in values.items() if tag.startswith("with_best/")}
        assert results == {f"with_best/{name}": [pytest.approx(value)] for name, value in record.flat_metrics.items()}
        assert "with_best/test/loss" in found.results
        lists.append((list(found.columns), found.results))
    assert all(listed == lists[0] for listed in lists)  # TensorBoard takes the columns from one of the runs
