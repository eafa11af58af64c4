"""TensorBoard's HParams tab: the settings and the final metrics of every trial, read from event files."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from lora_lightning.cli.main import main
from lora_lightning.runs.layout import EVENTS, HPARAMS_SUFFIX
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.hparams_tab import write_hparams
from lora_lightning.studies.open_study import open_study
from tests.studies.small_study import save_study


def read_events(run: Path) -> tuple[dict[str, Any], list[str], dict[str, list[float]]]:
    """The settings, the metrics of the tab, and the scalars of the run folder that they stand for."""
    (file,) = run.glob(f"{EVENTS}{HPARAMS_SUFFIX}")
    events = EventAccumulator(str(file))
    events.Reload()
    content = events.summary_metadata
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG].plugin_data.content)
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG].plugin_data.content)
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG].plugin_data.content)
    assert end.status == 1  # success
    settings = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    assert {info.name for info in experiment.hparam_infos} == settings.keys()
    scalars = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return settings, sorted(info.name.tag for info in experiment.metric_infos), scalars


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
        settings, metrics, scalars = read_events(record.folder)
        assert settings == {
            "configuration": trial.configuration,
            "method": trial.configuration.partition(",")[0],
            "r": float(trial.options["model.lora.r"]),
            "lora_alpha": float(trial.options["model.lora.r"]),
            "learning_rate": pytest.approx(trial.options["model.optimization.learning_rate"]),
            "seed": float(trial.seed),
        }
        expected = {f"final/{name}": [pytest.approx(value, rel=1e-6)] for name, value in record.flat_metrics.items()}
        assert scalars == expected  # one value each
        assert scalars.keys() <= set(metrics)
        assert "final/test/loss" in metrics
        lists.append(metrics)
        assert not any(tag.startswith("final/") for tag in record.curves)  # what training itself logged
    assert all(metrics == lists[0] for metrics in lists)

    write_hparams(
        study.planned, study.plan.trials[0], RunRecord.load(study.folder.run(study.plan.trials[0])), study.tag
    )
    read_events(study.folder.run(study.plan.trials[0]))  # still one file
