"""A run that trains nothing, or ends early, says so."""

from pathlib import Path

import pytest

from lora_lightning import RunRecord
from lora_lightning.cli.main import main
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
            "no better val/in_scope_accuracy in 1 valid",
        ),
        (["--early_stopping.stopping_threshold=-1"], "val/in_scope_accuracy reached -1"),
        (["--early_stopping.divergence_threshold=2"], "val/in_scope_accuracy passed 2"),
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


def test_a_validation_that_is_not_finite_is_a_failure(
    tiny_backbone: TinyBackbone,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lora_lightning.tasks import SequenceClassificationTask  # noqa: PLC0415

    values = SequenceClassificationTask.metric_values
    monkeypatch.setattr(
        SequenceClassificationTask, "metric_values", lambda *words: {**values(*words), "loss": float("nan")}
    )
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, "--trainer.num_sanity_val_steps=0")) == 2
    said = capsys.readouterr().err
    assert "val/loss became nan in the validation after step" in said
    assert "no checkpoint with finite weights has been saved yet." in said
    assert not (tmp_path / "run/version_0/checkpoints/best.ckpt").exists()
