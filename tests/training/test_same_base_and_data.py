"""A run is resumed and evaluated on the base model and the data that it was trained on, or it is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lightning.cli.main import main
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.record import RunRecord
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

ALLOW_BASE, ALLOW_DATA = "--allow_other_base=true", "--allow_changed_data=true"


class Trained(NamedTuple):
    """A run, and the files that it was trained on."""

    run: Path
    base: Path
    data: Path

    def words(self, command: str, *more: str) -> list[str]:
        return [command, f"--config={self.run / 'config.yaml'}", *more]

    def evaluation(self, command: str, *more: str) -> list[str]:
        return self.words(command, f"--ckpt_path={self.run / 'checkpoints/best.ckpt'}", *more)

    def resumption(self, *more: str) -> list[str]:
        (self.run / "summary.json").unlink()  # as if it had been killed before its last write
        return self.words("fit", "--resume=auto", *more)


@pytest.fixture(scope="module")
def original(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, data and a finished run; all paths are relative to it."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copytree(tiny_backbone("bert"), folder / "base")
    save_tiny_clinc150(folder / "data")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        words = ["fit", "--model=SequenceClassificationTask", "--model.backbone=./base", "--data=Clinc150DataModule"]
        words += [
            "--data.data_dir=data",
            "--data.cache_dir=cache",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
        ]
        words += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs", "--trainer.logger.name=x"]
        assert main([*words, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]) == 0
    return folder


@pytest.fixture
def trained(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """A copy to change."""
    shutil.copytree(original, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Trained(Path("runs/x/version_0"), Path("base"), Path("data"))


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: 1.01 * value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def change_data(folder: Path) -> None:
    path = folder / "data_full.json"
    content: dict[str, Any] = json.loads(path.read_text())
    content["train"][0][0] += " please"
    path.write_text(json.dumps(content))


def test_checkpoint_adapter_and_record_know_the_base(trained: Trained) -> None:
    known = read_checkpoint(trained.run / "checkpoints/best.ckpt")["base_model"]
    assert known == json.loads((trained.run / "adapter/base_model.json").read_text())
    assert known == RunRecord.load(trained.run).base_model
    assert {len(known[name]) for name in ("weights", "config", "tokenizer")} == {64}


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_weights_under_the_same_name_are_refused(
    trained: Trained, command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "queries.txt").write_text("w1 w2\n")
    more = [f"--data.predict_file={tmp_path / 'queries.txt'}"] if command == "predict" else []
    change_weights(trained.base)
    with monkeypatch.context() as patched:
        patched.delattr(SequenceClassificationTask, "build_network")  # it is refused before weights load
        assert main(trained.evaluation(command, *more)) == 2
    said = capfd.readouterr().err
    assert "was trained on another base model: different weights (SHA-256 " in said
    assert said.strip().endswith("or set --allow_other_base true.")
    assert main(trained.evaluation(command, ALLOW_BASE, *more)) == 0


def test_resuming_on_other_weights_is_refused(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    change_weights(trained.base)
    words = trained.resumption()
    assert main(words) == 2
    assert "different weights" in capfd.readouterr().err
    assert main([*words, ALLOW_BASE]) == 0
    assert RunRecord.load(trained.run).state == "finished"
    assert len(list(trained.run.parent.glob("version_*"))) == 1
    assert "allow" not in (trained.run / "config.yaml").read_text()


def test_starting_from_a_checkpoint_of_other_weights_is_refused(
    trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    change_weights(trained.base)
    assert main(trained.words("fit", f"--ckpt_path={trained.run / 'checkpoints/last.ckpt'}")) == 2
    assert "different weights" in capfd.readouterr().err


def test_the_same_base_under_another_name_is_the_same(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    trained.base.rename("renamed")
    assert main(trained.evaluation("test", "--model.backbone=./renamed")) == 0
    assert "base" not in capfd.readouterr().err


def test_another_tokenizer_is_refused(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    path = trained.base / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": False}))
    assert main(trained.evaluation("test")) == 2
    assert "different tokenizer (" in capfd.readouterr().err


def test_loading_a_checkpoint_in_python_checks_the_base_too(trained: Trained) -> None:
    path = trained.run / "checkpoints/best.ckpt"
    SequenceClassificationTask.load_from_checkpoint(path, weights_only=True)
    change_weights(trained.base)
    with pytest.raises(Exception, match="the checkpoint was trained on another base model: different weights"):
        SequenceClassificationTask.load_from_checkpoint(path, weights_only=True)


def test_resuming_on_changed_data_is_refused(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    change_data(trained.data)
    words = trained.resumption()
    assert main(words) == 2
    said = capfd.readouterr().err
    assert "has changed since it started: other rows in the split train." in said
    assert said.strip().endswith("or set --allow_changed_data true.")
    assert main([*words, ALLOW_DATA]) == 0
    before, after = RunRecord.load(trained.run).sessions
    assert before["data"]["train"] != after["data"]["train"]
    assert before["data"]["test"] == after["data"]["test"]


@pytest.mark.parametrize(("change", "allow"), [(change_data, ALLOW_DATA), (change_weights, ALLOW_BASE)])
def test_a_finished_run_of_other_files_does_not_pass_for_this_one(
    trained: Trained, change: Callable[[Path], None], allow: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = trained.words("fit", "--resume=auto")
    assert main(words) == 0
    change(trained.data if change is change_data else trained.base)
    assert main(words) == 2
    assert "other rows in the split train" in (said := capfd.readouterr().err) or "different weights" in said
    assert main([*words, allow]) == 0
    assert "is finished: there is nothing to resume" in capfd.readouterr().out
    assert len(list(trained.run.parent.glob("version_*"))) == 1


def test_the_same_base_and_data_resume_silently(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(trained.resumption()) == 0
    assert "not known whether" not in capfd.readouterr().err


def test_a_run_that_does_not_know_its_base_and_data_resumes_with_one_warning_each(
    trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (trained.run / "checkpoints").iterdir():
        checkpoint = read_checkpoint(path)
        del checkpoint["base_model"]
        torch.save(checkpoint, path)
    (trained.run / "run.json").unlink()
    assert main(trained.resumption()) == 0
    said = capfd.readouterr().err
    assert said.count("did not record the content of the base model") == 1
    assert said.count("did not record the content of its data") == 1
