"""Training, evaluating and predicting from Python: many times in one process, the same as the commands."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import load_file

from lora_lightning import RunRecord, evaluate, predict, train
from lora_lightning.callbacks import AdapterNormMonitor
from lora_lightning.cli.main import main
from lora_lightning.errors import CheckpointError, ConfigurationError, DataError, TrainingStopped
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150
from tests.training.test_earlier_run import small_config

Config = dict[str, Any]


@pytest.fixture(scope="module")
def config(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A small training run."""
    folder = tmp_path_factory.mktemp("api")
    data = {"data_dir": str(save_tiny_clinc150(folder / "data")), "batch_size": 16, "cache_dir": str(folder / "cache")}
    model = {"backbone": str(tiny_backbone("bert")), "optimization": {"learning_rate": 0.02}}
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": "runs"}}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": logger}
    return {
        "model": {"class_path": "SequenceClassificationTask", "init_args": model},
        "data": {"class_path": "Clinc150DataModule", "init_args": data},
        "trainer": trainer,
    }


@pytest.fixture(scope="module")
def run(config: Config) -> RunRecord:
    """A finished run."""
    return train(config)


def test_a_run_is_an_object(run: RunRecord, config: Config) -> None:
    assert run.state == "finished"
    assert run.settings["data"]["init_args"]["batch_size"] == 16
    assert run.metrics.keys() == {"val", "test"}
    assert run.curves["val/loss"].steps == (4, 9)
    assert run.data_fingerprint.keys() == {"train", "val", "test"}
    assert run.versions["torch"] == torch.__version__
    assert run.timings.fit is not None
    assert 0 < run.timings.fit < 300
    assert run.adapter is not None
    assert run.best_checkpoint is not None


def test_a_run_after_others_in_one_process_is_bit_equal(run: RunRecord, config: Config) -> None:
    seen, handlers = list(sys.argv), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(config, {"model.lora.r": 2, "model.lora.use_dora": True, "trainer.max_epochs": 1})
    again = train(config)
    assert again.folder != run.folder
    assert again.metrics == run.metrics
    left, right = (load_file(record.adapter / "adapter_model.safetensors") for record in (run, again) if record.adapter)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert sys.argv == seen
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_command_on_its_config_is_bit_equal(run: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(run.folder / "config.yaml")]) == 0, capsys.readouterr().err
    again = RunRecord.load(max(run.folder.parent.glob("version_*"), key=lambda path: int(path.name[8:])))
    assert again.folder != run.folder
    assert again.metrics == run.metrics


def test_a_finished_run_is_returned_when_it_is_resumed(run: RunRecord, config: Config) -> None:
    assert train(config, resume=True).folder.parent == run.folder.parent
    assert train(run.folder / "config.yaml", resume=True) == RunRecord.load(run.folder)


def test_a_stopped_run_is_resumed(config: Config, run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"trainer.logger.init_args.name": "stopped"}
    step: Callable[..., torch.Tensor] = SequenceClassificationTask.training_step

    def stop(task: SequenceClassificationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if task.trainer.global_step == 6:
            signal.raise_signal(signal.SIGTERM)
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "training_step", stop)
        with pytest.raises(TrainingStopped, match="after step 7, which is saved"):
            train(config, name)
    stopped = RunRecord.load(run.folder.parent.parent / "stopped/version_0")
    assert (stopped.state, stopped.reason) == ("interrupted", "SIGTERM")
    resumed = train(config, name, resume=True)
    assert resumed.folder == stopped.folder
    assert resumed.metrics == run.metrics
    assert [session["ending"] for session in resumed.sessions] == ["interrupted", "finished"]


def test_a_failed_run_says_why(config: Config, monkeypatch: pytest.MonkeyPatch, run: RunRecord) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "training_step", fail)
        with pytest.raises(ZeroDivisionError):
            train(config, {"trainer.logger.init_args.name": "failed"})
    failed = RunRecord.load(run.folder.parent.parent / "failed/version_0")
    assert (failed.state, failed.reason) == ("failed", "a bug of ours")


def test_evaluation_of_a_run(run: RunRecord) -> None:
    for split in ("val", "test"):
        found = evaluate(run.folder, split, {"data.eval_batch_size": 7})  # type: ignore[arg-type]
        assert found == pytest.approx({f"{split}/{k}": v for k, v in run.metrics[split].items()}, rel=1e-5, abs=1e-6)
    with pytest.raises(CheckpointError, match="split is 'train', but it must be 'val' or 'test'"):
        evaluate(run, "train")  # type: ignore[arg-type]


def test_predictions_of_a_run(run: RunRecord, tmp_path: Path) -> None:
    texts = ["w10 w100 t", "w11 w3 a, with a comma"]
    before = sorted(run.folder.rglob("*"))
    rows = predict(run, texts)
    assert [row["text"] for row in rows] == texts
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    assert predict(run, tmp_path / "texts.txt") == rows
    assert sorted(run.folder.rglob("*")) == before  # no file is written
    with pytest.raises(DataError, match="input 2 is 'two"):
        predict(run, ["one", "two\nlines"])


def test_callbacks_from_python_come_before_the_checkpoint(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    config = small_config(str(tiny_backbone("bert")), tmp_path)
    averaging = EMAWeightAveraging(decay=0.5)
    run = train(config, {"model.decision_threshold": "best_f1"}, callbacks=[averaging])
    assert run.best_checkpoint is not None
    assert run.adapter is not None
    chosen = float(torch.load(run.best_checkpoint, weights_only=True)["state_dict"]["label_threshold"])
    assert chosen != 0.5
    assert json.loads((run.adapter / "labels.json").read_text())["decision_threshold"] == pytest.approx(chosen)
    twice = {"trainer.callbacks": [{"class_path": "AdapterNormMonitor"}]}
    with pytest.raises(ConfigurationError, match="AdapterNormMonitor is given 2 times"):
        train(config, twice, callbacks=[AdapterNormMonitor()])


def test_wrong_options_are_sentences(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean model\.lora\.lora_alpha"):
        train(config, {"model.lora.lora_alfa": 4})
    with pytest.raises(ConfigurationError, match=r"model\.lora\.r is 0, but it must be at least 1"):
        train({**config, "trainer": {"max_epochs": 1}}, {"model.lora.r": 0})
    with pytest.raises(CheckpointError, match="fast_dev_run writes no run to return"):
        train(config, {"trainer.fast_dev_run": True, "trainer.logger": False})
    with pytest.raises(CheckpointError, match="is not a run folder"):
        evaluate(tmp_path)


def test_values_of_all_kinds_reach_the_options(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    monkeypatch.setattr("lora_lightning.training.fitting.check_at_least_one_step", lambda *_: None)
    monkeypatch.setattr("lora_lightning.training.fitting.TrainingRun.test", lambda _: {})
    monkeypatch.setattr("lora_lightning.training.fitting.count_trainable_parameters", lambda _: (1, 2))
    overrides = {
        "model.lora.target_modules": ["query", "value"],
        "model.lora.rank_pattern": {"query": 4},
        "model.lora.lora_dropout": 1e-5,
        "model.base_dropout": None,
        "data.oos_as_class": False,
        "data.variant": "full",
    }
    found = train(config, overrides).flat_settings
    assert found["model.init_args.lora.target_modules"] == ["query", "value"]
    assert found["model.init_args.lora.rank_pattern.query"] == 4
    assert found["model.init_args.lora.lora_dropout"] == 1e-5
    assert found["model.init_args.base_dropout"] is None
    assert found["data.init_args.oos_as_class"] is False
