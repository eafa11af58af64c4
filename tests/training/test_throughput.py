"""Speed counts what was trained on, and no pauses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_lightning.runs.resources import peak_memory
from lora_lightning.training.throughput import ThroughputMonitor
from tests.callbacks.test_merge_equivalence import fit
from tests.conftest import TinyBackbone


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """As much of a trainer, and of its second process that does the same, as the monitor sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: int = 2, accumulate: int = 1) -> None:
        self.clock = Clock()
        monkeypatch.setattr("lora_lightning.runs.resources.time.perf_counter", self.clock)
        self.logged: list[tuple[int, dict[str, float]]] = []
        logger = SimpleNamespace(log_metrics=lambda values, step: self.logged.append((step, values)))
        strategy = SimpleNamespace(
            root_device=torch.device("cpu"), reduce=lambda own, reduce_op: own * 2 if reduce_op == "sum" else own
        )
        self.trainer: Any = SimpleNamespace(
            global_step=0,
            log_every_n_steps=every,
            accumulate_grad_batches=accumulate,
            loggers=[logger, logger],
            is_global_zero=True,
            strategy=strategy,
        )
        self.monitor = ThroughputMonitor()
        self.module: Any = None
        self.batches = 0
        self.monitor.on_train_start(self.trainer, self.module)

    def batch(self, seconds: float, tokens: int, padding: int = 0, rows: int = 1) -> None:
        self.clock.now += seconds
        self.batches += 1
        self.trainer.global_step = self.batches // self.trainer.accumulate_grad_batches
        mask = torch.tensor([[1] * tokens + [0] * padding] * rows)
        self.monitor.on_train_batch_end(self.trainer, self.module, None, {"attention_mask": mask}, 0)

    @property
    def values(self) -> list[dict[str, float]]:
        """What the first of the two loggers has, without the tags' common part."""
        return [{tag.removeprefix("training_efficiency/"): v for tag, v in row.items()} for _, row in self.logged[::2]]


def test_pauses_do_not_count_and_padding_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch)
    loop.batch(100, tokens=1000)  # the first step warms up
    loop.batch(2, tokens=10, padding=30, rows=4)
    loop.batch(1, tokens=6, padding=2)
    loop.clock.now += 0.5  # still training
    loop.monitor.on_validation_start(loop.trainer, loop.module)
    loop.batch(50, tokens=1000)  # after a pause
    loop.batch(3, tokens=40)
    loop.monitor.on_train_epoch_end(loop.trainer, loop.module)
    loop.batch(70, tokens=1000)  # after another
    loop.monitor.on_train_end(loop.trainer, loop.module)
    first, second = loop.values
    assert [step for step, _ in loop.logged[::2]] == [2, 6]
    assert first["tokens_per_second"] == 2 * 40 / 2
    assert first["samples_per_second"] == 2 * 4 / 2
    assert first["seconds_per_step"] == 2
    assert first["padding_share"] == 0.75
    assert second["tokens_per_second"] == pytest.approx(2 * 46 / 4.5)
    assert second["seconds_per_step"] == pytest.approx(4.5 / 2)
    assert second["padding_share"] == pytest.approx(2 / 48)


def test_accumulated_batches_make_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, every=1, accumulate=2)
    for _ in range(6):
        loop.batch(1, tokens=5)
    assert [step for step, _ in loop.logged[::2]] == [1, 2, 3]
    assert [values["seconds_per_step"] for values in loop.values] == [2, 2, 2]


def test_a_short_run_is_logged_at_its_end(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    fit("intents", tiny_backbone("bert"), tmp_path, ThroughputMonitor(), limit_train_batches=3)
    header, *rows = (tmp_path / "run/version_0/metrics.csv").read_text().splitlines()
    names = [name for name in header.split(",") if name.startswith("training_efficiency/")]
    assert {name.partition("/")[2] for name in names} == {
        "samples_per_second",
        "tokens_per_second",
        "seconds_per_step",
        "padding_share",
        "peak_memory_mib",
    }
    places = [header.split(",").index(name) for name in names]
    values = [[row.split(",")[place] for place in places] for row in rows]
    assert sum(all(row) for row in values) == 1


def test_training_is_the_same_with_it(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    backbone = tiny_backbone("gpt2")
    monitored = fit("text", backbone, tmp_path / "with", ThroughputMonitor(), log_every_n_steps=1).state_dict()
    for name, tensor in fit("text", backbone, tmp_path / "without").state_dict().items():
        assert torch.equal(tensor, monitored[name]), name


def test_peak_memory_is_in_bytes_and_remembers() -> None:
    before = peak_memory(torch.device("cpu"))
    assert 2**26 < before < 2**36
    torch.ones(2**26, dtype=torch.uint8)  # 64 MiB, gone at once
    after = peak_memory(torch.device("cpu"))
    assert before <= after < before + 2**28
