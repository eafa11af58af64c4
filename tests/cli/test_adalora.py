"""AdaLoRA from end to end: what is handed over has the ranks that training ends with."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lora_lightning.cli.main import main
from tests.cli.test_commands import fit_words
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150


@pytest.mark.parametrize("patience", [1, 5])
def test_the_best_model_keeps_to_the_budget(tiny_backbone: TinyBackbone, tmp_path: Path, patience: int) -> None:
    """With this rate the first epochs are the best, and early stopping would end before ranks are final."""
    words = fit_words(tiny_backbone("bert"), save_tiny_clinc150(tmp_path / "data"), tmp_path)
    words = [word for word in words if "lora.r=" not in word]
    budget = {"init_r": 6, "target_r": 2, "tinit": 4, "tfinal": 15, "deltaT": 5}  # of 45 steps, 9 an epoch
    words += [f"--model.lora.adalora.{name}={value}" for name, value in budget.items()]
    words += [
        "--model.optimization.learning_rate=0.5",
        "--trainer.max_epochs=5",
        f"--early_stopping.patience={patience}",
    ]
    assert main(words) == 0
    run = tmp_path / "run" / "version_0"
    checkpoints = {name: torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last")}
    assert checkpoints["best"]["global_step"] in {36, 45}  # the last two epochs
    assert checkpoints["last"]["global_step"] == 45
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    targets = config["target_modules"]
    ranks = [config["rank_pattern"].get(name, config["r"]) for name in targets]
    table = pq.read_table(run / "adapter_metrics" / "adapter_ranks.parquet").to_pylist()
    means = [row["value"] for row in table if row["module"] == "all"]
    assert means == sorted(means, reverse=True)  # what momentum brings back is not in use
    assert means[-1] == 2
    kept = [row["value"] for row in table if row["step"] == 45 and row["module"] != "all"]
    assert sorted(ranks) == sorted(max(1, rank) for rank in kept)
