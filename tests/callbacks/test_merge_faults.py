"""Twenty-one faults of an export or a merge are caught in every precision, and intact merges pass for every seed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lightning.backbones.export import export_model
from lora_lightning.callbacks import MergeEquivalence, merge_equivalence
from lora_lightning.callbacks.adapter_monitor import Export
from lora_lightning.lora.config import LoraSettings
from tests.callbacks.test_merge_equivalence import SETTINGS, TASKS
from tests.conftest import TinyBackbone

PRECISIONS = ["32-true", "bf16-true", "16-true", "bf16-mixed"]
LAYER = "encoder.layer.1.attention.self.query"  # of those named in a fault
OTHER = "encoder.layer.0.attention.self.query"
WEIGHTS = "adapter_model.safetensors"
LORA = LoraSettings(
    r=4, lora_alpha=8, bias="all", alpha_pattern={LAYER: 16}, rank_pattern={OTHER: 2}, modules_to_save=["pooler"]
)

Fault = Callable[[Any], None]


def in_config(**changes: Any) -> Fault:
    """Changes the exported adapter's settings."""

    def plant(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, **{name: change(config[name]) for name, change in changes.items()}}))

    return plant


def in_tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Fault:
    """Changes the exported adapter's tensors."""

    def plant(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)

    return plant


def each(part: str, change: Callable[[Tensor], Tensor]) -> Fault:
    return in_tensors(lambda tensors: {n: change(t) if part in n else t for n, t in tensors.items()})


def without(part: str) -> Fault:
    return in_tensors(lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name})


def swapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    keys = [f"base_model.model.bert.encoder.layer.{layer}.attention.self.value.lora_B.weight" for layer in (0, 1)]
    return {**tensors, keys[0]: tensors[keys[1]], keys[1]: tensors[keys[0]]}


FOLDER_FAULTS: dict[str, Fault] = {
    "lora_alpha doubled": in_config(lora_alpha=lambda alpha: 2 * alpha),
    "scaling off by 1 %": in_config(
        lora_alpha=lambda alpha: 1.01 * alpha, alpha_pattern=lambda p: {n: 1.01 * a for n, a in p.items()}
    ),
    "scaling off by 10 %": in_config(lora_alpha=lambda alpha: 0.9 * alpha),
    "rsLoRA set": in_config(use_rslora=lambda _: True),
    "alpha_pattern dropped": in_config(alpha_pattern=lambda _: {}),
    "a layer not in target_modules": in_config(
        target_modules=lambda names: [name for name in names if not name.endswith(LAYER)]
    ),
    "a layer's tensors missing": without(LAYER),
    "a layer's B missing": without(f"{LAYER}.lora_B"),
    "the head missing": without("classifier"),
    "signs of B": each("lora_B", lambda tensor: -tensor),
    "B 1 % too large": each("lora_B", lambda tensor: 1.01 * tensor),
    "rows of B in reverse": each(f"{LAYER}.lora_B", lambda tensor: tensor.flip(0)),
    "layers swapped": in_tensors(swapped),
    "a bias dropped": each(f"{OTHER}.base_layer.bias", torch.zeros_like),
    "a NaN": each(f"{LAYER}.lora_A", lambda tensor: tensor.masked_fill(tensor == tensor.max(), torch.nan)),
}


def in_weights(change: Callable[[nn.Module, PreTrainedModel], Tensor], part: str = "attention.self") -> Fault:
    """Changes the merged model's weights."""

    def plant(model: PreTrainedModel) -> None:
        with torch.no_grad():
            for name, module in model.named_modules():
                if part in name and isinstance(module, nn.Linear):
                    module.weight.copy_(change(module, model))

    return plant


def noisy(module: nn.Module, _: PreTrainedModel) -> Tensor:
    weight = module.weight.float()
    return weight + 0.03 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def quantized(module: nn.Module, _: PreTrainedModel) -> Tensor:
    step = module.weight.float().abs().amax(dim=1, keepdim=True) / 127
    return (module.weight.float() / step).round() * step


def unmerged_like(module: nn.Module, model: PreTrainedModel) -> Tensor:
    return model.pretrained[id(module)]


MERGE_FAULTS: dict[str, Fault] = {
    "one layer unmerged": in_weights(unmerged_like, LAYER),
    "no layer merged": in_weights(unmerged_like),
    "a layer transposed": in_weights(lambda module, _: module.weight.T, LAYER),
    "3 % noise in every weight": in_weights(noisy, ""),
    "quantized again": in_weights(quantized),
    "merged twice": in_weights(lambda module, model: 2 * module.weight - unmerged_like(module, model)),
}
assert len(FOLDER_FAULTS | MERGE_FAULTS) == 21


class Faults(Callback):
    """Plants weights when training ends, exports them, and has the check look at every fault."""

    def __init__(self, folder: Path, seed: int, faults: dict[str, Fault]) -> None:
        self.folder, self.seed, self.faults = folder, seed, faults
        self.found: dict[str, str | None] = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, parameter in task.named_parameters():
                if parameter.requires_grad:
                    size = 0.5 if "lora_" in name else 0.1
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        base = task.load_plain_base()
        weights = ((name, getattr(module, "weight", None)) for name, module in base.named_modules())
        self.pretrained = {name: weight.clone() for name, weight in weights if weight is not None}
        export_model(task.built_network, trainer.datamodule.tokenizer, self.folder / "intact", {})
        assert (
            f"base_model.model.bert.{OTHER}.base_layer.bias" in load_file(self.folder / "intact" / WEIGHTS)
            or not self.faults
        )
        for name, fault in {"intact": lambda _: None, **self.faults}.items():
            self.found[name] = self.check(trainer, task, name, fault)

    def check(self, trainer: Trainer, task: Any, name: str, fault: Fault) -> str | None:
        place = self.folder / "fault"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder / "intact", place)
        if name not in MERGE_FAULTS:
            fault(place)
        gate, load = MergeEquivalence(), merge_equivalence.open_export

        def faulty(*arguments: Any) -> Any:
            model = load(*arguments)
            if name in MERGE_FAULTS:
                model.pretrained = {id(module): self.pretrained.get(n) for n, module in model.named_modules()}
                fault(model)
            return model

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(merge_equivalence, "open_export", faulty)
            gate.record_export(trainer, task, Export(1, place))
        assert gate.verdict is not None
        return gate.verdict.failure


def check_faults(
    backbone: Path, folder: Path, precision: str, seed: int, faults: dict[str, Fault], kind: str = "labels"
) -> dict[str, str | None]:
    """What the check says to each fault; trained weights are planted, so a step of training is enough."""
    seed_everything(seed, verbose=False)
    task, data = TASKS[kind][1](str(backbone), folder / "data")
    planted = Faults(folder, seed, faults)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        callbacks=[planted],
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(task, data)
    assert planted.found
    return planted.found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_fault_is_caught_and_intact_exports_pass(
    precision: str, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "lora", LORA)
    found = check_faults(tiny_backbone("bert"), tmp_path, precision, 0, FOLDER_FAULTS | MERGE_FAULTS)
    assert found.pop("intact") is None
    assert [name for name, failure in found.items() if failure is None] == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["labels", "text", "questions"])
def test_intact_exports_pass_for_every_seed(
    kind: str, precision: str, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone(TASKS[kind][0])
    for seed in range(1, 5):
        found = check_faults(backbone, tmp_path / str(seed), precision, seed, {}, kind)
        assert found == {"intact": None}
