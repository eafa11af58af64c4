"""A diagnosis whose runs take a second: intents of a few words on a tiny BERT, in float32 and in NF4."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from lora_lightning.reports.files import ReportFigure
from tests.tiny_data import save_tiny_clinc150

SETTINGS: dict[str, Any] = {
    "name": "small",
    "precisions": {"float32": {}, "NF4": {"model.quantization": {"bits": 4, "compute_dtype": "float32"}}},
    "ranks": [2, 4],
    "derived": {"model.lora.lora_alpha": "2 * r"},
    "seeds": [0],
    "objective": "in_scope_accuracy",
    "margin": 5,
    "measure": {"rows": 24, "singles": 5, "prompts": 2, "new_tokens": 4},
}


def leave_figures_out(patch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take seconds; `test_report.py` draws them."""
    for name in ("similarity", "sensitivity", "behavior", "costs"):
        patch.setattr(f"lora_lightning.diagnosis.report.{name}_figures", lambda *_: ())
    for name in ("errors", "ranks"):
        empty = ReportFigure(name, name, name, Figure(figsize=(1, 1)))
        patch.setattr(f"lora_lightning.diagnosis.report.{name}_figure", lambda _, empty=empty: empty)


def intents(backbone: Path, folder: Path) -> dict[str, Any]:
    """The base config of a classifier."""
    return {
        "model": {
            "class_path": "SequenceClassificationTask",
            "init_args": {
                "backbone": str(backbone),
                "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
                "optimization": {"learning_rate": 0.01, "warmup_share": 0},
            },
        },
        "data": {
            "class_path": "Clinc150DataModule",
            "init_args": {
                "data_dir": str(save_tiny_clinc150(folder / "data")),
                "cache_dir": str(folder / "cache"),
                "batch_size": 16,
            },
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "checkpoint": {"monitor": "val/in_scope_accuracy", "mode": "max"},
    }


def task_on(backbone: Path, folder: Path, task: str, data: str, options: dict[str, Any]) -> dict[str, Any]:
    """The base config of another task, which trains for six steps.

    Args:
        backbone: The backbone.
        folder: Where data and caches are.
        task: Its class.
        data: The class of its data module.
        options: Of the data module.
    """
    base = intents(backbone, folder)
    base["model"]["class_path"] = task
    own = options | {"cache_dir": str(folder / "cache"), "batch_size": 4}
    base["data"] = {"class_path": data, "init_args": own}
    base["trainer"] |= {"limit_train_batches": 3}
    base["checkpoint"] = {"monitor": "val/loss", "mode": "min"}
    return base


def save_diagnosis(folder: Path, base: dict[str, Any], **changes: Any) -> Path:
    """Writes the diagnosis as YAML.

    Args:
        folder: Where to.
        base: The base config.
        changes: Keys to replace; `None` removes one.

    Returns:
        The file.
    """
    path = folder / "small.yaml"
    content = {key: value for key, value in (SETTINGS | {"base": base} | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
