"""Runs that older releases made are read, evaluated and resumed, to the same result as theirs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lora_lightning import RunRecord, evaluate
from lora_lightning.cli.main import main
from lora_lightning.errors import LoraLightningError
from lora_lightning.runs.settings import text_fingerprint

MADE_BEFORE = Path(__file__).parent / "made_before"
RESUMED: dict[str, dict[str, float]] = json.loads((MADE_BEFORE / "resumed_metrics.json").read_text())


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the working directory: the configs name files relative to it."""
    folder = Path(shutil.copytree(MADE_BEFORE, tmp_path / "before"))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_is_resumed_as_its_own_release_would(before: Path, name: str) -> None:
    assert main(["fit", "--config", f"runs/{name}/version_0/config.yaml", "--resume", "auto"]) == 0
    assert [path.name for path in (before / "runs" / name).glob("version_*")] == [
        "version_0"
    ]  # and no new run beside it
    record = RunRecord.load(before / "runs" / name / "version_0")
    assert record.flat_metrics == pytest.approx(RESUMED[name], rel=1e-5, abs=1e-6)
    assert record.state == "finished"


def test_a_finished_run_is_read_and_evaluated(before: Path) -> None:
    record = RunRecord.load("runs/finished/version_0")
    assert record.state == "finished"
    assert (record.trainable_parameters, record.total_parameters) == (1733, 27850)
    assert record.settings["model"]["init_args"]["lora"]["r"] == 2
    assert record.versions == {}
    assert set(record.tables) >= {"adapter_norms", "rank_utilization"}
    expected = {f"val/{name}": value for name, value in record.metrics["val"].items()}
    assert evaluate(record, "val") == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_config_without_options_that_have_been_added_since_is_the_same_run(before: Path) -> None:
    path = before / "runs/interrupted/version_0/config.yaml"
    config = yaml.safe_load(path.read_text())
    words = ["fit", "--config", "given.yaml", "--resume", "auto", "--trainer.fast_dev_run=false"]
    (before / "given.yaml").write_text(path.read_text())
    # As if the release that made the run had not had these yet; their defaults mean what it did.
    del config["model"]["init_args"]["gradient_checkpointing"], config["early_stopping"]["log_rank_zero_only"]
    old = yaml.safe_dump(config, sort_keys=False)
    path.write_text(old)
    give_checkpoint_to(path, old, lacking="gradient_checkpointing")
    assert main(words) == 0
    assert [folder.name for folder in (before / "runs/interrupted").glob("version_*")] == ["version_0"]
    assert RunRecord.load(path.parent).state == "finished"


def test_a_config_that_lacks_an_option_with_another_value_than_its_default_is_another_run(before: Path) -> None:
    path = before / "runs/interrupted/version_0/config.yaml"
    (before / "given.yaml").write_text(path.read_text())
    config = yaml.safe_load(path.read_text())
    del config["data"]["init_args"]["batch_size"]  # 16, but 32 by default
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["fit", "--config", "given.yaml", "--resume", "auto"]) == 0
    assert sorted(folder.name for folder in (before / "runs/interrupted").glob("version_*")) == [
        "version_0",
        "version_1",
    ]


def test_former_names_of_classes_in_a_config_still_mean_them(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (before / "runs/interrupted/version_0/config.yaml").read_text()
    strategy = "strategy:\n    class_path: lora_lightning.strategies.FullyShardedStrategy\n    init_args:\n"
    strategy += "      process_group_backend: gloo"
    (before / "given.yaml").write_text(text.replace("strategy: auto", strategy).replace("version: null", "version: 7"))
    words = ["--trainer.max_steps=1", "--test_after_fit=false"]
    assert main(["fit", "--config=given.yaml", *words]) == 0, capsys.readouterr().err
    assert "training.strategies.FullyShardedStrategy" in (before / "runs/interrupted/version_7/config.yaml").read_text()


def test_a_newer_schema_is_refused_in_a_sentence(before: Path) -> None:
    path = before / "runs/finished/version_0/summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(LoraLightningError, match=r"summary.json has schema version 99, but .* up to 1; install"):
        RunRecord.load(path.parent)


def give_checkpoint_to(config: Path, text: str, lacking: str = "") -> None:
    """Lets a run's checkpoints say that they belong to this text of its config, and lack one hyperparameter."""
    for path in (config.parent / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["hyper_parameters"].pop(lacking, None)
        torch.save({**checkpoint, "settings": text_fingerprint(text)}, path)
