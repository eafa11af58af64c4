"""Constant answers are the best there are, and advice comes with what truncation costs or not at all."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lora_lightning.callbacks import RankUtilizationMonitor
from lora_lightning.callbacks.rank_validation import (
    metric_by_group,
    monitored_metric,
    paired_difference,
    validate_rank,
)
from lora_lightning.datamodules import PlantedRankDataModule
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.tasks import OptimizationSettings, PlantedRankTask
from lora_lightning.tasks.held_out_batches import held_out_batches, isolated_evaluation, split_rows
from tests.callbacks.test_merge_equivalence import TASKS, fit, trainer_of
from tests.conftest import TinyBackbone


class Asks(Callback):
    """Scores the constant answer when training ends, over all of the validation split."""

    found: dict[str, float]
    labels: list[Tensor]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        batches = held_out_batches(trainer, 1000)
        self.batches = batches
        with isolated_evaluation(task):
            self.found = {
                name: metric_by_group(trainer, task, batches, 1, name, task.constant_answer(batches))[0]
                for name in task.metric_names()
            }


def entropy(counts: Any) -> float:
    shares = np.asarray(counts, dtype=float) / np.sum(counts)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


@pytest.mark.parametrize("kind", ["labels", "several labels", "numbers", "questions", "text", "intents"])
def test_a_constant_answer_is_the_best_of_its_kind(kind: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    asks = Asks()
    fit(kind, tiny_backbone(TASKS[kind][0]), tmp_path, asks, logger=False)
    key = "start_positions" if kind == "questions" else "labels"
    labels = torch.cat([batch[key].flatten() if kind == "text" else batch[key] for batch in asks.batches]).numpy()
    found = asks.found
    if kind == "labels":
        counts = np.bincount(labels)
        assert found["accuracy"] == pytest.approx(counts.max() / counts.sum())
        assert found["loss"] == pytest.approx(entropy(counts), rel=1e-5)
        assert found["matthews_correlation"] == 0 if "matthews_correlation" in found else True
    elif kind == "several labels":
        shares = labels.mean(axis=0)
        assert found["loss"] == pytest.approx(np.mean([entropy([share, 1 - share]) for share in shares]), rel=1e-4)
    elif kind == "numbers":
        assert found["loss"] == pytest.approx(labels.var(), rel=1e-5)
    elif kind == "questions":
        unanswered = torch.cat([batch["start_positions"] == batch["null_position"] for batch in asks.batches])
        assert found["HasAns_exact"] == 0
        assert found["NoAns_exact"] == 1
        assert 0 < found["exact"] < 1
        assert found["loss"] > entropy([int(unanswered.sum()), int((~unanswered).sum())])
    elif kind == "text":
        counts = np.bincount(labels[labels >= 0])
        assert found["loss"] == pytest.approx(entropy(counts), rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(entropy(counts)), rel=1e-3)
        assert found["next_token_accuracy"] == pytest.approx(counts.max() / counts.sum(), rel=1e-5)
    else:
        counts = np.bincount(labels[labels >= 0])
        assert found["in_scope_accuracy"] <= counts.max() / counts.sum() + 0.5
        assert found["loss"] == pytest.approx(entropy(counts), rel=1e-4)


class Validates(Callback):
    """Gives the adapters updates of a rank, and validates and truncates them when training ends."""

    def __init__(self, r: int) -> None:
        self.r = r

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        before = {name: parameter.clone() for name, parameter in task.named_parameters()}
        self.found = validate_rank(trainer, task, self.r)
        assert all(torch.equal(parameter, before[name]) for name, parameter in task.named_parameters())
        self.loss = expected_loss(trainer, task, None)
        self.truncated = expected_loss(trainer, task, self.r)


def expected_loss(trainer: Trainer, task: PlantedRankTask, r: int | None) -> float:
    """In NumPy: the mean squared error of W + dW, dW truncated by a dense SVD."""
    (batch,) = held_out_batches(trainer, 1)
    inputs, total = batch["inputs"].double().numpy(), 0.0
    for number, layer in enumerate(adapted_layers(task).values()):
        a, b = (factor.detach().double().numpy() for factor in adapter_factors(layer))
        u, s, vh = np.linalg.svd(layer.scaling["default"] * b @ a, full_matrices=False)
        update = (u[:, :r] * s[:r]) @ vh[:r]
        weight = layer.get_base_layer().weight.double().detach().numpy() + update
        error = inputs @ (weight - task.planted[number].double().numpy()).T
        total += float((error**2).sum(axis=1).mean())
    return total / len(task.planted)


def planted(folder: Path, *callbacks: Callback, epochs: int = 30, rate: float = 0.02) -> PlantedRankTask:
    task = PlantedRankTask(
        lora=LoraSettings(r=16, lora_alpha=16, lora_dropout=0.0),
        optimization=OptimizationSettings(learning_rate=rate, warmup_share=0),
    )
    options = {"max_epochs": epochs, "limit_train_batches": 32, "logger": False}
    trainer_of(folder, *callbacks, **options).fit(task, PlantedRankDataModule())
    return task


def test_truncation_is_validated_and_the_adapter_comes_back(tmp_path: Path) -> None:
    validates = Validates(2)
    planted(tmp_path, validates)
    found = validates.found
    assert found is not None
    assert found.metric == "val/loss"
    assert found.examples == 256
    assert found.value == pytest.approx(validates.loss, rel=1e-3)
    assert found.truncated == pytest.approx(validates.truncated, rel=1e-3)
    assert found.is_better  # than outputs of zero
    assert found.is_worse  # ranks of 4 and 8 are planted too


def test_the_report_says_what_truncation_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted(tmp_path, RankUtilizationMonitor())
    report = json.loads((tmp_path / "rank_utilization.json").read_text())
    assert report["validation"]["r"] == 8  # the largest planted rank
    assert not report["validation"]["is_worse"]
    assert "and truncated to it, this adapter has val/loss " in report["advice"]
    assert "try --model.lora.r=8 " in report["advice"]
    assert report["advice"] in capsys.readouterr().out


def test_no_rank_is_advised_where_nothing_was_learnt(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("labels", tiny_backbone("bert"), tmp_path, RankUtilizationMonitor(), logger=False)
    report = json.loads((tmp_path / "rank_utilization.json").read_text())
    assert report["advice"].startswith("no advice: val/loss is ")
    assert "--model.lora.r" not in report["advice"]
    assert report["validation"]["is_better"] is False


def test_batches_are_cut_until_there_are_enough_groups() -> None:
    batch = {"x": torch.arange(7), "y": torch.arange(14).view(7, 2)}
    pieces = split_rows([batch], 10)
    assert len(pieces) == 7
    assert torch.equal(torch.cat([piece["x"] for piece in pieces]), batch["x"])
    assert split_rows([batch] * 10, 10) == [batch] * 10
    assert [len(piece["y"]) for piece in split_rows([batch, batch], 4)] == [3, 3, 1, 3, 3, 1]
    assert split_rows([], 10) == []


def test_a_difference_is_paired_by_group() -> None:
    found = paired_difference([0.9, 0.8, 0.85, math.nan], [0.5, 0.45, 0.4, 0.5], 1)
    paired = np.array([0.4, 0.35, 0.45])
    half = 4.302652730 * paired.std(ddof=1) / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.4 - half, 0.4 + half))
    assert paired_difference([0.5, 0.4], [0.3, 0.1], -1).value == pytest.approx(-0.25)
    assert paired_difference([0.5, 0.4], [math.nan, math.nan], 1).value == pytest.approx(
        0.45
    )  # a constant's correlation
    assert math.isnan(paired_difference([math.nan], [0.0], 1).low)


def test_the_monitored_metric_counts(tmp_path: Path) -> None:
    task = PlantedRankTask()
    assert monitored_metric(trainer_of(tmp_path, logger=False), task) == ("loss", -1)
