"""A run that trains nothing, never validates or ends early says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from safetensors.torch import load_file

from lora_lightning import RunRecord
from lora_lightning.cli.main import main
from lora_lightning.tasks import SequenceClassificationTask
from tests.cli.test_commands import fit_words
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny release."""
    return save_tiny_clinc150(tmp_path_factory.mktemp("clinc150"))


@pytest.mark.parametrize("nothing", ["max_epochs=0", "max_steps=0", "limit_train_batches=0", "max_time=00:00:00:00"])
def test_training_nothing_is_no_success(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, nothing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, f"--trainer.{nothing}")) == 2
    assert "before its first optimizer step" in capsys.readouterr().err
    record = RunRecord.load(tmp_path / "run/version_0")
    assert record.state == "failed"
    assert record.metrics == {}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--early_stopping.patience=1", "--model.optimization.learning_rate=1e-9"],
            "val/in_scope_accuracy did not improve in 1 valid",
        ),
        (["--early_stopping.stopping_threshold=-1"], "val/in_scope_accuracy reached -1"),
        (["--early_stopping.divergence_threshold=2"], "val/in_scope_accuracy became worse than 2"),
    ],
)
def test_an_early_stop_in_the_first_epoch_is_said(
    tiny_backbone: TinyBackbone,
    data: Path,
    tmp_path: Path,
    words: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--trainer.val_check_interval=1", "--trainer.max_epochs=1", "--test_after_fit=false", *words]
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, *more)) == 0
    assert f"stopped early: {reason}" in " ".join(capsys.readouterr().out.split())
    assert RunRecord.load(tmp_path / "run/version_0").reason.startswith(reason)


class StopAt(Callback):
    """A user's own callback that ends training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Asks for the end at a step."""
        trainer.should_stop |= trainer.global_step == self.step


@pytest.mark.parametrize(("step", "early"), [(2, True), (3, True), (6, False)])
@pytest.mark.parametrize("limit", ["--trainer.max_epochs=2", "--trainer.max_steps=6"])
def test_a_stop_by_any_callback_is_said_unless_no_step_was_left(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, step: int, early: bool, limit: str
) -> None:
    callback = json.dumps({"class_path": f"{__name__}.StopAt", "init_args": {"step": step}})
    more = ["--trainer.limit_train_batches=3", "--test_after_fit=false", f"--trainer.callbacks+={callback}", limit]
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, *more)) == 0
    record = RunRecord.load(tmp_path / "run/version_0")
    assert record.steps == step
    assert record.reason == (f"a callback set trainer.should_stop after {step} steps" if early else "")


def test_a_validation_that_is_not_finite_is_a_failure(
    tiny_backbone: TinyBackbone,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = SequenceClassificationTask.metric_values
    monkeypatch.setattr(
        SequenceClassificationTask, "metric_values", lambda *words: {**values(*words), "loss": float("nan")}
    )
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, "--trainer.num_sanity_val_steps=0")) == 2
    said = capsys.readouterr().err
    assert "val/loss became nan in the validation after step" in said
    assert "no checkpoint with finite weights has been saved yet." in said
    assert not (tmp_path / "run/version_0/checkpoints/best.ckpt").exists()


def test_a_test_that_is_not_finite_is_a_failure(
    tiny_backbone: TinyBackbone,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = SequenceClassificationTask.metric_values

    def without_finite_test_loss(task: Any, split: str) -> dict[str, float]:
        return {**values(task, split), **({"loss": float("nan")} if split == "test" else {})}

    monkeypatch.setattr(SequenceClassificationTask, "metric_values", without_finite_test_loss)
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path)) == 2
    run = tmp_path / "run/version_0"
    assert f"test/loss of {run}/checkpoints/best.ckpt is nan" in capsys.readouterr().err
    assert RunRecord.load(run).state == "failed"
    words = ["test", f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/best.ckpt"]
    assert main(words) == 2
    assert not (run / "test_metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["limit_val_batches=0"], "there was no validation"),
        (["val_check_interval={hours: 1}"], "training ended before its first validation"),
        (
            ["val_check_interval=00:01:00:00", "check_val_every_n_epoch=null"],
            "training ended before its first validation",
        ),
        (["max_time={seconds: 1}", "max_epochs=100000", "check_val_every_n_epoch=99999"], "training ended before"),
    ],
    ids=["no validation", "an hour", "an hour across epochs", "too little time"],
)
def test_a_run_without_validation_has_no_best_checkpoint(
    tiny_backbone: TinyBackbone,
    data: Path,
    tmp_path: Path,
    words: list[str],
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--test_after_fit=false", *(f"--trainer.{word}" for word in words)]
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, *more)) == 0
    out, err = capsys.readouterr()
    assert ("the out_of_scope_threshold; it stays infinite" in err) == (words == ["limit_val_batches=0"])
    said = " ".join(out.split())
    assert f"last.ckpt (none is the best: {why}" in said
    assert "best checkpoint" not in said
    assert "(weights of the last step)" in said
    run = RunRecord.load(tmp_path / "run/version_0")
    assert (run.best_checkpoint, run.monitor, run.metrics) == (None, None, {})
    assert run.checkpoint == run.folder / "checkpoints/last.ckpt"
    assert not (run.checkpoint.parent / "best.ckpt").exists()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert "best_checkpoint" not in summary
    assert summary["no_best_checkpoint"].startswith(why)
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    assert run.adapter is not None
    exported = load_file(run.adapter / "adapter_model.safetensors")
    name = next(name for name in exported if name.endswith("query.lora_B.weight"))
    assert exported[name].equal(state[f"network.{name}".replace("lora_B.weight", "lora_B.default.weight")])


@pytest.mark.parametrize(
    "words", [["check_val_every_n_epoch=3"], ["val_check_interval=99", "check_val_every_n_epoch=null"]]
)
def test_a_run_that_would_never_validate_is_refused(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"--trainer.{word}" for word in words]
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, *more)) == 2
    assert "it would never validate; set it to at most" in capsys.readouterr().err
    assert not (tmp_path / "run/version_0/checkpoints").exists()
