"""Rows that a limit leaves out, and steps that no validation has seen, are said; predict leaves out none."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from lora_lightning import RunRecord, evaluate, predict
from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.checkpoint import read_checkpoint
from tests.conftest import TinyBackbone
from tests.training.test_earlier_run import small_config

LIMITS = {"limit_val_batches": 1, "limit_test_batches": 0.5, "limit_predict_batches": 1, "val_check_interval": 3}


@pytest.fixture(scope="module")
def limited(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, str]:
    """A run of four steps, of which the last is not validated, and what it printed."""
    folder = tmp_path_factory.mktemp("limited")
    config = small_config(str(tiny_backbone("bert")), folder)
    config["trainer"] |= {**LIMITS, "max_epochs": 1}
    data = config["data"]["init_args"]
    data |= {"test_file": data["validation_file"], "eval_batch_size": 8}
    (folder / "limited.yaml").write_text(yaml.safe_dump(config))
    with redirect_stdout(io.StringIO()) as said:
        assert main(["fit", f"--config={folder / 'limited.yaml'}"]) == 0
    return RunRecord.load(folder / "old/version_0"), said.getvalue()


def test_a_run_says_which_rows_and_steps_were_left_out(limited: tuple[RunRecord, str]) -> None:
    run, said = limited
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["scored_rows"] == {"val": "6 of 12 rows", "test": "6 of 12 rows"}
    assert summary["not_validated"].startswith("the last 1 of 4 steps were not validated, so only last.ckpt has them")
    assert run.best_checkpoint is not None
    assert read_checkpoint(run.best_checkpoint)["global_step"] == 3
    assert run.adapter is not None
    card = (run.adapter / "README.md").read_text()
    for text in ("he last 1 of 4 steps were not validated", "those of val are of 6 of 12 rows, those of test are of 6"):
        assert text in said
        assert text in card


def test_a_limited_test_says_so(limited: tuple[RunRecord, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = limited
    words = ["test", f"--config={run.folder / 'config.yaml'}", f"--ckpt_path={run.checkpoint}"]
    assert main(words) == 0
    assert "those of test are of 6 of 12 rows" in capsys.readouterr().out
    file = run.folder / "test_metrics.json"
    assert json.loads(file.read_text())["scored_rows"] == {"test": "6 of 12 rows"}
    assert RunRecord.load(run.folder).evaluations["test"].keys() == {f"test/{name}" for name in run.metrics["test"]}
    assert main([*words, "--trainer.limit_test_batches=1.0"]) == 0
    assert "scored_rows" not in json.loads(file.read_text())
    with pytest.warns(UserWarning, match="those of val are of 6 of 12 rows"):
        evaluate(run, "val")


def test_predict_leaves_out_no_row(limited: tuple[RunRecord, str], tmp_path: Path) -> None:
    run, _ = limited
    texts = [f"w10 w{number}" for number in range(20)]
    assert [row["text"] for row in predict(run, texts, {"data.eval_batch_size": 4})] == texts
    with pytest.raises(ConfigurationError, match="limit_predict_batches is 2, but predict writes a prediction for"):
        predict(run, texts, {"trainer.limit_predict_batches": 2})
    for command in ("validate", "test", "predict"):
        words = [command, f"--config={run.folder / 'config.yaml'}", f"--ckpt_path={run.checkpoint}"]
        words += [f"--data.predict_file={tmp_path / 'none.txt'}", "--trainer.fast_dev_run=true"]
        assert main(words) == 2
