"""The progress bar shows complete numbers, in terminals of any width."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lora_lightning.training.progress_bar import MetricsProgressBar, bar_width, fitting_metrics


@pytest.mark.parametrize(("width", "bar"), [(40, 4), (80, 4), (100, 24), (200, 40)])
def test_the_bar_gives_way_to_the_metrics(width: int, bar: int) -> None:
    assert bar_width(width) == bar


@pytest.mark.parametrize(
    ("metrics", "room", "shown"),
    [
        ({"train/loss": 1.23456, "val/in_scope_accuracy": 0.9125}, 44, ["loss", "in_scope_accuracy"]),
        ({"train/loss": 1.23456, "val/in_scope_accuracy": 0.9125}, 20, ["loss"]),
        ({"train/loss": 1.0, "val/loss": 2.0}, 44, ["train/loss", "val/loss"]),
        ({"train/loss": 1.0}, 3, []),
        ({}, 44, []),
    ],
)
def test_metrics_are_left_out_and_not_cut(metrics: dict[str, float], room: int, shown: list[str]) -> None:
    assert list(fitting_metrics(metrics, room, ".4g")) == shown


class Model(BoringModel):
    """Logs a loss, and an accuracy with a long name."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train/loss", torch.tensor(0.000123456), prog_bar=True)
        self.log("val/in_scope_accuracy", torch.tensor(0.912345), prog_bar=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_line_is_complete(width: int, tmp_path: Path) -> None:
    file = io.StringIO()
    bar = MetricsProgressBar(
        console_kwargs={"file": file, "width": width, "force_terminal": True, "color_system": None}
    )
    options: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0, "accelerator": "cpu"}
    silent: dict[str, Any] = {"enable_model_summary": False, "enable_checkpointing": False}
    try:
        Trainer(callbacks=[bar], logger=CSVLogger(tmp_path), **options, **silent).fit(Model())
    finally:
        rich.reconfigure()
    text = re.sub(r"\x1b\[[\d?;]*\w", "\n", file.getvalue())
    (line,) = {line for line in text.splitlines() if "2/2" in line and "loss" in line}
    assert "loss: 0.0001235" in line
    assert ("in_scope_accuracy: 0.9123" in line) is (width > 60)
    assert len(line) <= width
    assert "v_num" not in text
    assert "Epoch 1/1 " in line
    assert all(part not in text for part in ("0.0001234", "it/s", "…"))


class Validated(Model):
    """Validates on an accuracy."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val/accuracy", torch.tensor(0.5), prog_bar=True)
        return super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_every_validation_has_a_line_in_a_log_file(
    is_terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = MetricsProgressBar(console_kwargs={"file": io.StringIO(), "force_terminal": is_terminal})
    options: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1, "accelerator": "cpu"}
    silent: dict[str, Any] = {"enable_model_summary": False, "enable_checkpointing": False}
    try:
        Trainer(callbacks=[bar], logger=CSVLogger(tmp_path), **options, **silent).fit(Validated())
    finally:
        rich.reconfigure()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    expected = [f"epoch {n}/2, step {3 * n}: val/in_scope_accuracy 0.9123, val/accuracy 0.5" for n in (1, 2)]
    assert lines == ([] if is_terminal else expected)
