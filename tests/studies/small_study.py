"""A study whose runs take a fraction of a second: a planted update of rank 2, and adapters of rank 1 to 4."""

from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "model": {
        "class_path": "PlantedRankTask",
        "init_args": {
            "problem": {"in_features": 8, "out_features": 6, "ranks": [2]},
            "lora": {"r": 4, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": "all-linear"},
            "optimization": {"learning_rate": 0.02, "weight_decay": 0.0},
        },
    },
    "data": {
        "class_path": "PlantedRankDataModule",
        "init_args": {"in_features": 8, "train_rows": 64, "batch_size": 16},
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 2},
    "checkpoint": {"monitor": "val/loss", "mode": "min"},
}
STUDY: dict[str, Any] = {
    "name": "small",
    "base": BASE,
    "axes": {"model.lora.r": [1, 2, 4]},
    "derived": {"model.lora.lora_alpha": "r"},
    "seeds": [0, 1],
    "objective": "loss",
    "margin": 0.5,
    "reference": {"r": 4},
}


def save_study(folder: Path, **changes: Any) -> Path:
    """Writes the study as YAML.

    Args:
        folder: Where to.
        changes: Keys to replace; `None` removes one.

    Returns:
        The file.
    """
    path = folder / "small.yaml"
    content = {key: value for key, value in (STUDY | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
