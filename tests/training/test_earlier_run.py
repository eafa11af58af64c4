"""A new run that starts from another run's checkpoint: its own steps, data, metric and patience decide its result."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lightning import RunRecord, train
from lora_lightning.datamodules import TextClassificationDataModule
from lora_lightning.errors import TrainingError
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.training.earlier_run import EarlierRun
from tests.conftest import TinyBackbone

Config = dict[str, Any]
ACCURACY = {"checkpoint.monitor": "val/accuracy", "checkpoint.mode": "max"}


def save_rows(path: Path, words: tuple[str, str], count: int) -> str:
    """Texts of two labels, each of which has a word of its own."""
    rows = [f"{words[number % 2]} w{number % 7},{'ab'[number % 2]}\n" for number in range(count)]
    path.write_text("text,label\n" + "".join(rows))
    return str(path)


def small_config(backbone: str, folder: Path) -> Config:
    """Two epochs of four steps on separable texts; 12 validation rows."""
    data = {
        "train_file": save_rows(folder / "train.csv", ("w10", "w20"), 32),
        "validation_file": save_rows(folder / "validation.csv", ("w10", "w20"), 12),
        "batch_size": 8,
        "cache_dir": str(folder / "cache"),
    }
    model = {"backbone": backbone, "optimization": {"learning_rate": 0.02, "schedule": "constant"}}
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": "old"}}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": logger}
    return {
        "model": {"class_path": "SequenceClassificationTask", "init_args": model},
        "data": {"class_path": "TextClassificationDataModule", "init_args": data},
        "trainer": trainer,
    }


@pytest.fixture(scope="module")
def config(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """As above."""
    return small_config(str(tiny_backbone("bert")), tmp_path_factory.mktemp("earlier"))


@pytest.fixture(scope="module")
def old(config: Config) -> RunRecord:
    """A finished run."""
    return train(config)


def go_on(config: Config, old: RunRecord, logs: Path, **more: Any) -> RunRecord:
    """A new run from the last checkpoint of another."""
    given = {"ckpt_path": str(old.last_checkpoint), "trainer.logger.init_args.save_dir": str(logs)}
    return train(config, {**given, **{name.replace("__", "."): value for name, value in more.items()}})


def step_of_best(run: RunRecord) -> int:
    assert run.best_checkpoint is not None
    return int(read_checkpoint(run.best_checkpoint)["global_step"])


def summary(run: RunRecord) -> Config:
    content: Config = json.loads((run.folder / "summary.json").read_text())
    return content


def test_on_the_same_data_the_best_checkpoint_is_the_one_to_beat(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(config, {**ACCURACY, "trainer.logger.init_args.save_dir": str(tmp_path / "first")})
    assert first.metric("val/accuracy") == 1
    run = go_on(config, first, tmp_path, trainer__max_epochs=3, **ACCURACY)
    assert run.steps == 12
    assert step_of_best(run) == step_of_best(first)  # no accuracy is above 1
    assert summary(run)["best_of_earlier_run"] == str(first.best_checkpoint)
    assert run.adapter is not None
    assert "It is that of the run from which this one started" in (run.adapter / "README.md").read_text()
    said = capsys.readouterr().out
    assert f"starting from {first.last_checkpoint} (step 8)" in said
    assert "chosen among the validations of this run alone" not in said
    moved = Path(shutil.move(first.folder, tmp_path / "moved"))
    again = go_on(config, RunRecord.load(moved), tmp_path / "again", trainer__max_epochs=3, **ACCURACY)
    assert summary(again)["best_of_earlier_run"] == str(moved / "checkpoints/best.ckpt")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("rows", "there are other rows in the split val"),
        (ACCURACY, "checkpoint.monitor is val/accuracy here and val/loss there"),
        ({"data.max_length": 7}, "data.init_args.max_length is 7 here and"),
        ({"trainer.limit_val_batches": 1}, "trainer.limit_val_batches is 1 here and None there"),
    ],
    ids=["rows", "monitor", "length", "limit"],
)
def test_other_scores_are_not_those_to_beat(
    config: Config,
    old: RunRecord,
    tmp_path: Path,
    more: str | dict[str, Any],
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if isinstance(more, str):
        more = {"data.validation_file": save_rows(tmp_path / "other.csv", ("w30", "w40"), 12)}
    run = go_on(config, old, tmp_path, trainer__max_epochs=3, **more)
    assert step_of_best(run) == 12
    assert "best_of_earlier_run" not in summary(run)
    assert why in capsys.readouterr().out


def test_a_new_run_without_a_step_of_its_own_is_no_run(config: Config, old: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"before its first optimizer step \(.* allow no step after the 8 of "):
        go_on(config, old, tmp_path)
    failed = RunRecord.load(tmp_path / "old/version_0")
    assert (failed.state, failed.adapter) == ("failed", None)


def test_a_run_that_had_stopped_goes_on_with_the_new_patience(config: Config, tmp_path: Path) -> None:
    still = {**ACCURACY, "model.optimization.learning_rate": 1e-12, "early_stopping.patience": 1}
    stopped = train(config, {**still, "trainer.max_epochs": 9, "trainer.logger.init_args.save_dir": str(tmp_path)})
    assert (stopped.steps, "in 1 validations" in stopped.reason) == (8, True)
    still["early_stopping.patience"] = 3
    run = go_on(config, stopped, tmp_path / "new", trainer__max_epochs=9, **still)
    assert (run.steps, "in 3 validations" in run.reason) == (8 + 3 * 4, True)
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["early_stopping"]["patience"] == 3


def test_the_run_of_a_checkpoint_that_lies_elsewhere_is_not_known(old: RunRecord, tmp_path: Path) -> None:
    content = {"global_step": 8, "callbacks": {"AdapterCheckpoint": {"best_model_path": "gone/best.ckpt"}}}
    found = EarlierRun.of(str(tmp_path / "a.ckpt"), content)
    assert (found.folder, found.best, found.steps) == (None, None, 8)
    assert "is not here, so that nobody knows its data" in found.why_not_comparable("", TextClassificationDataModule())
    content["callbacks"] = {"AdapterCheckpoint": {"best_model_path": str(old.best_checkpoint)}}
    found = EarlierRun.of(str(tmp_path / "a.ckpt"), content)
    assert (found.folder, found.best) == (old.folder, old.best_checkpoint)
