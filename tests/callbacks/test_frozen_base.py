"""A base that trains, has a gradient or changes is found and named; one that does not passes, quantized ones too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lora_lightning.callbacks import FrozenBaseCheck
from lora_lightning.callbacks.frozen_base import fingerprint, frozen_tensors
from lora_lightning.errors import VerificationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.tasks import AdaptationTask
from tests.callbacks.test_merge_equivalence import SETTINGS, Quantized, fit, plain_text, trainer_of
from tests.conftest import TinyBackbone


class Once(Callback):
    """Does something to the model after the first step."""

    def __init__(self, change: Any, hook: str = "on_train_batch_end") -> None:
        setattr(self, hook, lambda trainer, task, *_: change(task) if trainer.global_step <= 1 else None)


def parameter(task: AdaptationTask, name: str) -> torch.Tensor:
    return next(p for n, p in task.named_parameters() if n.endswith(name) and not p.requires_grad)


def logged(folder: Path) -> str:
    (path,) = folder.glob("run/version_0/metrics.csv")
    return path.read_text()


@pytest.mark.parametrize("kind", ["intents", "questions", "text"])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_base_that_stays_passes(
    kind: str,
    bias: Any,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(SETTINGS, "lora", LoraSettings(r=4, bias=bias))
    task = fit(kind, tiny_backbone("gpt2"), tmp_path, FrozenBaseCheck(), logger=CSVLogger(tmp_path, name="run"))
    frozen = dict(frozen_tensors(task))
    assert f"{float(len(frozen))}" in logged(tmp_path)
    assert f"frozen base: all {len(frozen)} tensors are unchanged." in capsys.readouterr().out
    names = {name for name, p in task.network.named_parameters() if not p.requires_grad}  # type: ignore[union-attr]
    assert names <= frozen.keys()
    assert not any("lora_" in name for name in frozen)


def test_a_tensor_that_becomes_trainable_is_not_said_to_have_changed(
    tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    freeing = Once(lambda task: parameter(task, "ln_f.weight").requires_grad_())
    with pytest.raises(VerificationError, match=r"\S*ln_f.weight was frozen when training started and is trainable"):
        fit("intents", tiny_backbone("gpt2"), tmp_path, FrozenBaseCheck(), freeing)


@pytest.mark.parametrize("name", ["h.0.mlp.c_fc.base_layer.weight", "wpe.weight", "ln_f.weight"])
def test_the_first_changed_tensor_is_named(name: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    def change(task: AdaptationTask) -> None:
        with torch.no_grad():
            values = parameter(task, name).view(-1)
            values[-1] = torch.nextafter(values[-1], values[-1] + 1)  # the last bit of one number

    with pytest.raises(VerificationError, match=rf"the frozen base changed during training, \S*{name} first"):
        fit("text", tiny_backbone("gpt2"), tmp_path, FrozenBaseCheck(), Once(change))


def test_a_gradient_of_the_base_is_named(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    def change(task: AdaptationTask) -> None:
        weight = parameter(task, "wpe.weight")
        weight.grad = torch.zeros_like(weight)

    with pytest.raises(VerificationError, match=r"the frozen parameter \S*wpe.weight has a gradient"):
        fit("text", tiny_backbone("gpt2"), tmp_path, Once(change, "on_after_backward"), FrozenBaseCheck())


def test_a_base_that_trains_is_refused(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    trains = Once(lambda task: parameter(task, "wpe.weight").requires_grad_(), "on_fit_start")
    with pytest.raises(VerificationError, match=r"\S*wpe.weight belongs to the base but is trainable"):
        fit("text", tiny_backbone("gpt2"), tmp_path, trains, FrozenBaseCheck())


def test_full_fine_tuning_has_no_frozen_base(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETTINGS, "lora", None)
    fit("text", tiny_backbone("gpt2"), tmp_path, FrozenBaseCheck())
    assert "FrozenBaseCheck checks nothing: all parameters are trainable" in capsys.readouterr().out


def quantized(backbone: Path, folder: Path, bits: int, *callbacks: Any) -> None:
    task = Quantized(str(backbone), **SETTINGS)
    task.bits = bits
    trainer: Trainer = trainer_of(folder, *callbacks, max_epochs=2)
    trainer.fit(task, plain_text(str(backbone), folder / "data")[1])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_stays_through_validation(bits: int, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantized(tiny_backbone("llama"), tmp_path, bits, FrozenBaseCheck())


@pytest.mark.parametrize(("bits", "state"), [(4, "weight.nested_absmax"), (4, "weight"), (8, "SCB")])
def test_a_changed_scale_of_a_quantized_weight_is_found(
    bits: int, state: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")

    def change(task: AdaptationTask) -> None:
        base = next(module.base_layer for name, module in task.named_modules() if name.endswith("0.self_attn.q_proj"))
        if bits == 8:
            base.state.SCB.mul_(1.001)
        elif state == "weight":
            base.weight.data[0] ^= 1
        else:
            base.weight.quant_state.state2.absmax.mul_(1.001)

    with pytest.raises(VerificationError, match=rf"layers.0.self_attn.q_proj.base_layer.{state} first"):
        quantized(tiny_backbone("llama"), tmp_path, bits, FrozenBaseCheck(), Once(change))


def test_a_fingerprint_knows_every_byte_the_shape_and_the_dtype() -> None:
    values = [
        torch.zeros(3, 4),
        torch.zeros(4, 3),
        torch.zeros(3, 4, dtype=torch.float16),
        -torch.zeros(3, 4),  # another bit, though the numbers are equal
        torch.zeros(3, 4, dtype=torch.bfloat16),
        torch.tensor(0.0),
        torch.zeros(0),
    ]
    assert len({fingerprint(value) for value in values}) == len(values)
    wide = torch.arange(12.0).view(3, 4)
    assert fingerprint(wide.T) == fingerprint(wide.T.contiguous()) != fingerprint(wide)
    assert fingerprint(nn.Parameter(wide)) == fingerprint(wide)
