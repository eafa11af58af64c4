"""Tokens a second count what was trained on, and no pauses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_lightning.callbacks import TokenThroughput


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(tokens: int, padding: int) -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.tensor([[1] * tokens + [0] * padding])}


def test_pauses_and_padding_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, logged = Clock(), []
    monkeypatch.setattr("lora_lightning.callbacks.token_throughput.time.perf_counter", clock)
    module: Any = SimpleNamespace(log=lambda name, value: logged.append((name, value)))
    trainer: Any = SimpleNamespace(world_size=2)
    throughput = TokenThroughput()

    def step(seconds: float, tokens: int) -> None:
        clock.now += seconds
        throughput.on_train_batch_end(trainer, module, None, batch(tokens, 3), 0)

    throughput.on_train_epoch_start(trainer, module)
    step(100, 1000)  # the first step warms up
    step(2, 10)
    step(2, 30)
    throughput.on_validation_start(trainer, module)
    step(50, 1000)  # after a pause
    step(1, 40)
    assert [name for name, _ in logged] == ["train/tokens_per_second"] * 3
    assert [value for _, value in logged] == pytest.approx([2 * 10 / 2, 2 * 40 / 4, 2 * 80 / 5])
