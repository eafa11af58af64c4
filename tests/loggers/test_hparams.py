"""TensorBoard's HParams tab has a row for every run, interrupted, resumed and failed ones, too; from event files."""

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Trainer
from tensorboard.plugins.hparams import api_pb2

from lora_lightning.cli.main import main
from lora_lightning.runs.record import RunRecord
from lora_lightning.training.final_validation import FinalValidation
from lora_lightning.training.main_settings import main_settings, other_settings
from tests.loggers.events import hparams, scalars, tags, texts
from tests.studies.small_study import BASE

SUCCESS, FAILURE = api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE


def fit(folder: Path, *more: str) -> int:
    """A run of a fraction of a second."""
    config = copy.deepcopy(BASE)
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": "run"}}
    config["trainer"] |= {"logger": logger, "enable_progress_bar": False}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return main(["fit", f"--config={path}", *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    assert fit(folder, "--trainer.callbacks=ParameterEfficiency") == 0
    return folder / "run/version_0"


def test_settings_are_those_of_the_run_one_value_each(run: Path) -> None:
    found = hparams(run)
    other = found.settings.pop("other")
    assert found.settings == {
        "data": "planted-rank",
        "backbone": "",
        "method": "lora",
        "r": 4,
        "lora_alpha": 4,
        "lora_dropout": 0,
        "learning_rate": 0.02,
        "weight_decay": 0,
        "warmup_share": pytest.approx(0.06),
        "batch_size": 16,
        "accumulate_grad_batches": 1,
        "max_epochs": 2,
        "max_steps": -1,
        "seed": 0,
        "target_modules": "all-linear",
        "schedule": "linear",
        "precision": "32-true",
        "trainable_parameters": 8 * 4 + 4 * 6,
        "total_parameters": 8 * 4 + 4 * 6 + 8 * 6,
    }
    assert set(other.split("; ")) == {
        *("model.problem.in_features=8", "model.problem.out_features=6", "model.problem.ranks=[2]"),
        *("data.in_features=8", "data.train_rows=64", "trainer.accelerator=cpu"),
    }
    assert found.columns.keys() - found.settings.keys() == {
        "bits",
        "gradient_clip_val",
        "other",
    }
    assert {name for name, telling in found.columns.items() if telling} == {
        *("data", "backbone", "method", "r", "learning_rate", "seed")
    }


def test_results_are_those_of_the_summary(run: Path) -> None:
    found, record = hparams(run), RunRecord.load(run)
    assert found.statuses == [SUCCESS]
    values = scalars(run)
    for tag, value in record.flat_metrics.items():
        assert f"with_best/{tag}" in found.results
        assert values[f"with_best/{tag}"] == [pytest.approx(value)]
    assert values["with_best/efficiency/reduction"] == [pytest.approx(48 / 56)]
    assert {tag for tag in values if tag.startswith("with_best/")} == set(found.results)
    assert not {tag for tag in values if tag.startswith(("test", "epoch", "hp_metric", "efficiency"))}
    (card,) = texts(run)["results"]
    assert f"| test/loss | {record.metric('test/loss'):.6g} |" in card
    (card,) = texts(run)["efficiency"]
    assert "| module | trained_parameters | total_parameters | trained_share | trained_bytes | reduction |" in card


def test_no_curve_of_the_run_is_a_result(run: Path) -> None:
    curves = RunRecord.load(run).curves
    assert not [tag for tag in curves if tag.startswith("with_best")]
    assert len(curves["val/loss"].values) == 2
    assert len(curves["test/loss"].values) == 1


def test_all_options_and_versions_are_in_hparams_yaml(run: Path) -> None:
    found = yaml.safe_load((run / "hparams.yaml").read_text())
    assert found["model"]["lora"]["r"] == 4
    assert found["model"]["class_path"] == "lora_lightning.tasks.PlantedRankTask"
    assert (found["data"]["batch_size"], found["trainer"]["max_epochs"], found["seed_everything"]) == (16, 2, 0)
    assert found["versions"]["torch"]


def test_custom_scalars_has_a_layout(run: Path) -> None:
    assert "custom_scalars__config__" in tags(run, "tensors")


@pytest.mark.parametrize("before", [1, 2], ids=["before a checkpoint", "after one"])
def test_an_interrupted_run_has_a_row_and_a_resumed_one_that_of_an_uninterrupted(
    before: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: FinalValidation, trainer: Trainer, *__: Any) -> None:
        if trainer.current_epoch == before - 1:
            signal.raise_signal(signal.SIGTERM)

    words = ["--trainer.callbacks=ParameterEfficiency", "--resume=auto"]
    with monkeypatch.context() as patch:
        patch.setattr(FinalValidation, "on_train_epoch_start", ask, raising=False)
        assert fit(tmp_path, *words) == 75
    own = tmp_path / "run/version_0"
    stopped, whole = hparams(own), hparams(run)
    assert stopped.statuses == [FAILURE]
    assert stopped.settings == whole.settings
    values = scalars(own)
    assert ("with_best/val/loss" in values) is (before == 2)  # the best so far
    assert fit(tmp_path, *words) == 0
    resumed = hparams(own)
    assert resumed == whole
    expected = {tag: value for tag, value in scalars(run).items() if tag.startswith("with_best")}
    assert {tag: value for tag, value in scalars(own).items() if tag.startswith("with_best")} == expected


def test_a_run_that_fails_has_a_row(tmp_path: Path) -> None:
    assert fit(tmp_path, "--model.optimization.learning_rate=1e30", "--trainer.max_epochs=5") == 2
    found = hparams(tmp_path / "run/version_0")
    assert found.statuses == [FAILURE]
    assert found.settings["learning_rate"] == 1e30


def test_full_fine_tuning_lists_the_same_columns_as_lora(run: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, "--model.lora=null") == 0
    found = hparams(tmp_path / "run/version_0")
    assert found.columns == hparams(run).columns
    assert found.settings["method"] == "full"
    assert found.settings["target_modules"] == "none"
    assert not {"r", "lora_alpha", "lora_dropout"} & found.settings.keys()


def test_other_options_are_those_that_differ_from_their_defaults() -> None:
    settings = {
        "model.class_path": "lora_lightning.tasks.SequenceClassificationTask",
        "model.init_args.backbone": "roberta-base",
        "model.init_args.lora.r": 4,
        "model.init_args.lora.bias": "all",
        "model.init_args.lora.adalora.target_r": 2,
        "model.init_args.label_smoothing": 0.0,
        "data.class_path": "lora_lightning.datamodules.Clinc150DataModule",
        "data.init_args.max_length": 32,
        "data.init_args.cache_dir": "anywhere",
        "trainer.precision": "bf16-mixed",
        "trainer.max_steps": -1,
        "trainer.logger.class_path": "TensorBoardLogger",
        "checkpoint.monitor": "val/loss",
    }
    expected = {"model.lora.bias": "all", "model.lora.adalora.target_r": 2, "data.max_length": 32}
    assert other_settings(settings) == expected
    shown = main_settings(settings, 1, 2)
    assert shown["other"] == "model.lora.bias=all; model.lora.adalora.target_r=2; data.max_length=32"
    assert (shown["r"], shown["method"], shown["precision"]) == (2, "adalora", "bf16-mixed")
