"""The loss on another text is the model's own, is measured before the first step, and does not change training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from lora_lightning.callbacks import OtherTextLoss
from lora_lightning.datamodules import PlainTextDataModule
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.runs.curves import read_curves
from lora_lightning.tasks import CausalLanguageModelingTask, OptimizationSettings, SequenceClassificationTask
from tests.conftest import TinyBackbone


def train(folder: Path, backbone: Path, callbacks: list[Any], name: str = "run") -> CausalLanguageModelingTask:
    (folder / "a.txt").write_text("".join(f"w{n} w{n + 1} w{n + 2}\n" for n in range(40)))
    (folder / "other.txt").write_text("w9 w3 w1 w4 w7 w2 w8 w5 w6 w1 w9 w2 w3 w5 w8 w7 w1\n" * 3)
    torch.manual_seed(0)
    task = CausalLanguageModelingTask(str(backbone), lora=None, optimization=OptimizationSettings(learning_rate=0.3))
    data = PlainTextDataModule(
        train_file=str(folder / "a.txt"), context_length=10, batch_size=2, backbone=str(backbone), cache_dir=str(folder)
    )
    Trainer(
        default_root_dir=folder,
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(folder, name=name),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(task, data)
    return task


def reference_loss(task: CausalLanguageModelingTask, folder: Path, length: int, blocks: int | None = None) -> float:
    """The mean over all tokens of the blocks, by transformers and NumPy alone."""
    tokens = np.array(task.tokenizer((folder / "other.txt").read_text(), add_special_tokens=False)["input_ids"])
    losses: list[float] = []
    for start in list(range(0, len(tokens) - 1, length))[:blocks]:
        piece = torch.tensor(tokens[start : start + length + 1])[None]
        with torch.no_grad():
            logits = task.transformers_model(piece[:, :-1]).logits[0].double()
        losses += (-logits.log_softmax(-1)[range(len(logits)), piece[0, 1:]]).tolist()
    return float(np.mean(losses))


def test_the_last_value_is_the_loss_of_the_trained_model(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    other = OtherTextLoss(str(tmp_path / "other.txt"), context_length=8, batch_size=3)
    task = train(tmp_path, tiny_backbone("gpt2"), [other]).eval()
    curve = read_curves(tmp_path / "run" / "version_0")["other_text/all/loss"]
    assert curve.steps[0] == 0
    assert len(curve.steps) == 3  # before the first step, and after two epochs
    assert curve.values[-1] == pytest.approx(reference_loss(task, tmp_path, 8), rel=1e-5)
    assert curve.values[0] != pytest.approx(curve.values[-1], rel=1e-3)


def test_only_the_first_tokens_count(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    other = OtherTextLoss(str(tmp_path / "other.txt"), context_length=8, max_tokens=17, batch_size=1)
    task = train(tmp_path, tiny_backbone("gpt2"), [other]).eval()
    values = read_curves(tmp_path / "run" / "version_0")["other_text/all/loss"].values
    assert values[-1] == pytest.approx(reference_loss(task, tmp_path, 8, blocks=2), rel=1e-5)


def test_it_changes_nothing_of_the_training(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    backbone = tiny_backbone("gpt2")
    alone = train(tmp_path, backbone, [], "alone")
    other = train(
        tmp_path, backbone, [OtherTextLoss(str(tmp_path / "other.txt"), every_n_steps=1, context_length=8)], "other"
    )
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_what_cannot_be_measured_is_refused_before_weights_load(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = CausalLanguageModelingTask(str(tiny_backbone("gpt2")))
    trainer = Trainer(accelerator="cpu", logger=False)
    with pytest.raises(ConfigurationError, match="needs a CausalLanguageModelingTask, not SequenceClassificationTask"):
        OtherTextLoss("a.txt").setup(trainer, SequenceClassificationTask(str(tiny_backbone("bert"))), "fit")
    with pytest.raises(DataError, match=r"a\.txt"):
        OtherTextLoss(str(tmp_path / "a.txt"), context_length=8).setup(trainer, task, "fit")
    (tmp_path / "a.txt").write_text("w1 w2 w3")
    with pytest.raises(ConfigurationError, match="context_length"):
        OtherTextLoss(str(tmp_path / "a.txt"), context_length=4000).setup(trainer, task, "fit")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        OtherTextLoss(str(tmp_path / "empty.txt"), context_length=8).setup(trainer, task, "fit")
    for option in ("context_length", "max_tokens", "batch_size"):
        with pytest.raises(ConfigurationError, match=f"OtherTextLoss.{option} is 0"):
            OtherTextLoss("a.txt", **{option: 0})
    assert task.network is None
