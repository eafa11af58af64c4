"""After a loss that is not a number, a checkpoint is named that was read again and found finite."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import Trainer

from lora_lightning.training.finite_loss import name_finite_checkpoint

NAN, INFINITY = float("nan"), float("inf")


def save(path: Path, weight: float = 1.0, moment: float = 1.0, threshold: float = INFINITY) -> str:
    state = {"out_of_scope_threshold": torch.tensor(threshold), "network.lora_A": torch.tensor([1.0, weight])}
    optimizer = {"state": {0: {"exp_avg": torch.tensor([moment])}}, "param_groups": []}
    torch.save({"state_dict": state, "hyper_parameters": {}, "optimizer_states": [optimizer]}, path)
    return str(path)


def named(last: str, best: str) -> str:
    callback = SimpleNamespace(last_model_path=last, best_model_path=best)
    return name_finite_checkpoint(cast("Trainer", SimpleNamespace(checkpoint_callbacks=[callback])))


def test_a_threshold_that_is_still_infinite_does_not_spoil_a_checkpoint(tmp_path: Path) -> None:
    last = save(tmp_path / "last.ckpt")
    assert last in named(last, "")


@pytest.mark.parametrize(
    "damage", [{"weight": NAN}, {"weight": INFINITY}, {"moment": NAN}, {"threshold": NAN}], ids=str
)
def test_the_best_is_named_if_the_last_is_not_finite(tmp_path: Path, damage: dict[str, Any]) -> None:
    last, best = save(tmp_path / "last.ckpt", **damage), save(tmp_path / "best.ckpt")
    assert best in named(last, best)
    assert last not in named(last, best)


def test_none_is_named_if_none_is_finite(tmp_path: Path) -> None:
    last = save(tmp_path / "last.ckpt", weight=NAN)
    assert ".ckpt" not in named(last, str(tmp_path / "missing.ckpt"))
