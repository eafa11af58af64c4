"""AdamW is fused wherever gradients are not scaled, and clipped there as Lightning clips."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_lightning.tasks import optimized
from lora_lightning.tasks.optimization import OptimizationSettings, build_optimizer
from lora_lightning.tasks.optimized import OptimizedTask

CLIPS = [{"gradient_clip_val": 0.3}, {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}, {}]


class Task(OptimizedTask):
    """A layer whose gradients are large beside any limit of these tests."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.optimization = OptimizationSettings(learning_rate=0.1)
        self.layer = nn.Linear(6, 4)
        self.clipped: list[dict[str, Tensor]] = []
        self.fused: set[object] = set()

    def training_step(self, batch: Tensor) -> Tensor:
        return self.layer(batch).pow(2).sum()  # type: ignore[no-any-return]

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        self.fused |= {group["fused"] for group in optimizer.param_groups}
        self.clipped.append({name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None})


def trained(precision: str | MixedPrecision, **options: Any) -> Task:
    task = Task()
    key = "precision" if isinstance(precision, str) else "plugins"
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    batches = list(torch.linspace(-2, 2, 72).view(3, 4, 6))
    Trainer(accelerator="cpu", max_epochs=2, enable_model_summary=False, **{key: precision}, **quiet, **options).fit(  # type: ignore[arg-type]
        task, torch.utils.data.DataLoader(batches, batch_size=None)
    )
    return task


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_bfloat16_trains_with_the_fused_optimizer_as_with_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, clip: dict[str, Any]
) -> None:
    fused = trained("bf16-mixed", **clip)
    monkeypatch.setattr(optimized, "build_optimizer", lambda *args, **_: build_optimizer(*args, scales_gradients=True))
    monkeypatch.delattr(OptimizedTask, "configure_gradient_clipping")  # Lightning's own
    plain = trained("bf16-mixed", **clip)
    assert (fused.fused, plain.fused) == ({True}, {None})
    assert len(fused.clipped) == len(plain.clipped) == 6
    for one, other in zip(fused.clipped, plain.clipped, strict=True):
        for name, gradient in other.items():
            torch.testing.assert_close(one[name], gradient, rtol=1e-3, atol=1e-5)
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):  # type: ignore[assignment]
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def float16() -> MixedPrecision:
    """By its name alone Lightning takes bfloat16 on a CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))


@pytest.mark.parametrize(("precision", "fused"), [("bf16-mixed", True), ("32-true", True), (None, None)])
def test_gradients_are_clipped_in_every_precision(precision: str | None, fused: object) -> None:
    by_norm, by_value = (trained(precision or float16(), **clip) for clip in CLIPS[:2])
    assert by_norm.fused == by_value.fused == {fused}
    for gradients in by_norm.clipped:
        assert float(torch.stack([g.norm() for g in gradients.values()]).norm()) == pytest.approx(0.3, rel=1e-3)
    for gradients in by_value.clipped:
        assert max(float(g.abs().max()) for g in gradients.values()) == pytest.approx(0.02)


def test_a_run_whose_optimizer_was_not_fused_goes_on_as_it_was() -> None:
    def step(model: nn.Module, optimizer: Optimizer) -> None:
        model(torch.linspace(-1, 1, 12).view(2, 6)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    build = partial(build_optimizer, settings=OptimizationSettings(learning_rate=0.1))
    former = nn.Linear(6, 4)
    optimizer = build(former, scales_gradients=True)
    step(former, optimizer)
    model = nn.Linear(6, 4)
    model.load_state_dict(former.state_dict())
    resumed = build(model)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its_optimizer in ((former, optimizer), (model, resumed)):
        step(each, its_optimizer)
    assert {group["fused"] for group in resumed.param_groups} == {None}
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), former.parameters(), strict=True))
