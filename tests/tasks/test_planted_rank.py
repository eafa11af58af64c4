"""A planted rank is found again: training with r above it shows an effective rank near it, for several ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel

from lora_lightning.backbones.planted_rank import PlantedRank, PlantedRankConfig, PlantedRankModel
from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError

CONFIG = Path(__file__).parents[2] / "configs" / "synthetic" / "planted_rank.yaml"


def fit(folder: Path, *words: str) -> Path:
    """Runs the shipped config; the run's folder."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", f"--trainer.logger.save_dir={folder}"]
    assert main(["fit", f"--config={CONFIG}", *quiet, *words]) == 0
    (run,) = folder.glob("planted-rank-*/version_0")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("planted"))


def adapters(run: Path) -> dict[str, Any]:
    return json.loads((run / "rank_utilization.json").read_text())["adapters"]


def test_the_shipped_config_finds_every_planted_rank(run: Path) -> None:
    planted = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["problem"]["ranks"]
    assert planted == [1, 2, 4, 8]
    for k, found in zip(planted, adapters(run).values(), strict=True):
        assert found["r"] == 16
        assert found["effective_rank"] == pytest.approx(k, rel=0.01)
        assert found["stable_rank"] == pytest.approx(k, rel=0.01)
        assert found["energy_rank_99"] == k
        np.testing.assert_allclose(found["singular_values"][:k], 1.0, rtol=1e-3)


@pytest.mark.parametrize(("r", "ranks"), [(6, [3, 5]), (12, [3, 5])])
def test_other_ranks_are_found_with_another_r(tmp_path: Path, r: int, ranks: list[int]) -> None:
    found = adapters(fit(tmp_path, f"--model.lora.r={r}", f"--model.problem.ranks={ranks}"))
    assert [each["effective_rank"] for each in found.values()] == pytest.approx(ranks, rel=0.01)


def test_a_rank_that_is_too_small_is_used_up(tmp_path: Path) -> None:
    run = fit(tmp_path, "--model.lora.r=3", "--model.problem.ranks=[8]", "--trainer.max_epochs=5")
    report = json.loads((run / "rank_utilization.json").read_text())
    assert adapters(run)["layers.0.linear"]["utilization"] > 0.95
    assert "try --model.lora.r=6 --model.lora.lora_alpha=32" in report["advice"]


def test_the_adapter_loads_with_plain_peft_and_is_the_planted_update(run: Path) -> None:
    problem = PlantedRank()
    base = PlantedRankModel(PlantedRankConfig.from_pretrained(run / "adapter" / "config"))
    model = PeftModel.from_pretrained(base, run / "adapter").merge_and_unload()
    merged = torch.stack([layer.linear.weight for layer in model.layers])
    torch.testing.assert_close(merged - problem.base_weights(), problem.deltas(), rtol=0, atol=1e-3)


def test_a_checkpoint_is_tested_and_predicts(run: Path, tmp_path: Path) -> None:
    words = [f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]
    assert main(["test", *words]) == 0
    assert json.loads((run / "test_metrics.json").read_text())["test/loss"] < 1e-3
    assert main(["predict", *words, f"--predictions.file={tmp_path / 'errors.jsonl'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(256))
    assert len(rows[0]["squared_error"]) == 4


def test_a_checkpoint_of_another_problem_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]
    assert main(["test", *words, "--model.problem.seed=1"]) == 2
    assert "problem.seed is 1 here and 0 in the checkpoint" in capsys.readouterr().err


def test_full_fine_tuning_trains_the_layers_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(tmp_path, "--model.lora=null", "--trainer.max_epochs=1")
    assert (run / "adapter" / "model.safetensors").exists()
    assert not (run / "rank_utilization.json").exists()
    said = [line for line in capsys.readouterr().err.splitlines() if "measures nothing" in line]
    assert said == [
        f"lora-lightning: warning: {name} measures nothing: this model trains without adapters (model.lora is null)."
        for name in ("AdapterNormMonitor", "RankUtilizationMonitor")
    ]


@pytest.mark.parametrize("ranks", [[], [0], [49]])
def test_ranks_that_no_layer_has_are_refused(ranks: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="needs a rank from 1 to 48"):
        PlantedRank(ranks=ranks)


def test_a_monitor_of_texts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", f"--config={CONFIG}", f"--trainer.logger.save_dir={tmp_path}"]
    assert main([*words, "--trainer.callbacks+=RepresentationDrift"]) == 2
    assert "RepresentationDrift compares the hidden states of texts, and PlantedRankData" in capsys.readouterr().err


def test_data_of_another_width_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--config={CONFIG}", "--data.in_features=32", f"--trainer.logger.save_dir={tmp_path}"]) == 2
    assert "data.in_features is 32, but model.problem.in_features is 64" in capsys.readouterr().err


def test_too_few_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--config={CONFIG}", "--data.train_rows=63", f"--trainer.logger.save_dir={tmp_path}"]) == 2
    assert "at least in_features = 64 rows are needed" in capsys.readouterr().err


def test_planted_updates_have_the_ranks_that_were_asked_for() -> None:
    problem = PlantedRank(in_features=9, out_features=7, ranks=[2, 7], seed=3)
    for k, delta in zip(problem.ranks, problem.deltas(), strict=True):
        sigma = np.linalg.svd(delta.numpy().astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(sigma, [1.0] * k + [0.0] * (7 - k), atol=1e-6)
    assert not torch.equal(problem.base_weights(), PlantedRank(9, 7, [2, 7], seed=4).base_weights())
