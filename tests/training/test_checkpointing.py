"""adapter/ holds what best.ckpt holds, whichever callback decided that, and the monitors measure those weights."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from lora_lightning.callbacks import AdapterNormMonitor, IntruderDimensions, RankUtilizationMonitor
from lora_lightning.lora.config import AdaLoraSettings, LoraSettings
from lora_lightning.lora.delta import adapter_deltas
from lora_lightning.tasks import AdaptationTask, OptimizationSettings
from lora_lightning.training.checkpoint_weights import temporary_weights
from lora_lightning.training.checkpointing import AdapterCheckpoint
from tests.callbacks.test_merge_equivalence import SETTINGS, TASKS
from tests.conftest import TinyBackbone


class HalvesWhatIsSaved(Callback):
    """A user's callback that saves other weights than those that train."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        del trainer, pl_module
        checkpoint["state_dict"] = {
            name: value / 2 if "lora_B" in name else value for name, value in checkpoint["state_dict"].items()
        }


class GetsWorse(Callback):
    """Moves the weights after every validation but the first, so that the first epoch is the best by far."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            with torch.no_grad():
                for name, parameter in pl_module.named_parameters():
                    if "lora_B" in name:
                        parameter.add_(torch.randn_like(parameter))


AVERAGING = {
    "none": Callback,
    "EMA": lambda: EMAWeightAveraging(decay=0.5),
    "SWA": WeightAveraging,
    "a user's": HalvesWhatIsSaved,
    "worse later": GetsWorse,
}


def train(kind: str, backbone: Path, folder: Path, *callbacks: Callback, **options: Any) -> tuple[AdaptationTask, Path]:
    """Three epochs with `AdapterCheckpoint`; the task as it is afterwards, and the run's folder."""
    seed_everything(0, verbose=False)
    task, data = TASKS[kind][1](str(backbone), folder / "data")
    if data.label_space is not None:
        task.adopt_labels(data.label_space)  # as the program does: some callbacks build the model before its setup
    task.optimization = OptimizationSettings(learning_rate=0.02)
    checkpoint = AdapterCheckpoint()
    trainer = Trainer(
        **{"max_epochs": 3, **options},
        default_root_dir=folder / "run",
        accelerator="cpu",
        logger=False,
        callbacks=[*callbacks, checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    checkpoint.dirpath = str(folder / "run" / "checkpoints")
    trainer.fit(task, data)
    return task, folder / "run"


def saved(run: Path) -> dict[str, Tensor]:
    (path,) = list((run / "checkpoints").glob("best.ckpt")) or [run / "checkpoints" / "last.ckpt"]
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def exported(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("averaging", AVERAGING)
@pytest.mark.parametrize("kind", ["labels", "text"])
def test_the_adapter_folder_holds_what_the_best_checkpoint_holds(
    kind: str, averaging: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    _, run = train(kind, tiny_backbone(TASKS[kind][0]), tmp_path, AVERAGING[averaging]())
    state = {
        name.removeprefix("network.").replace(".default", "").replace(".modules_to_save", ""): value
        for name, value in saved(run).items()
        if name.startswith("network.")
    }
    found = exported(run)
    assert found.keys() == state.keys()
    for name, value in found.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("variant", ["pissa", "adalora"])
def test_a_variant_is_converted_from_what_the_checkpoint_holds(
    variant: str, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = AdaLoraSettings(target_r=1, init_r=4, tinit=1, tfinal=1)
    lora = LoraSettings(adalora=budget) if variant == "adalora" else LoraSettings(r=4, init_lora_weights="pissa")
    monkeypatch.setitem(SETTINGS, "lora", lora)
    task, run = train("labels", tiny_backbone("bert"), tmp_path, HalvesWhatIsSaved())
    with temporary_weights(task, saved(run)):
        expected = {delta.module: delta.dense() for delta in adapter_deltas(task)}
        base = task.transformers_model
        fresh = type(base).from_pretrained(str(tiny_backbone("bert")), config=base.config)
        plain = PeftModel.from_pretrained(fresh, str(run / "adapter"))
        for delta in adapter_deltas(plain):
            torch.testing.assert_close(delta.dense(), expected[delta.module], atol=1e-5, rtol=1e-4)


def test_what_validation_chose_is_never_averaged(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    """An average over the infinity before the first validation would be NaN."""
    _task, run = train("intents", tiny_backbone("bert"), tmp_path, EMAWeightAveraging(decay=0.5))
    assert torch.isfinite(saved(run)["out_of_scope_threshold"])


@pytest.mark.parametrize("averaging", ["EMA", "worse later", "a user's"])
def test_monitors_measure_what_is_exported_and_leave_the_model_alone(
    averaging: str, tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitors = (AdapterNormMonitor(), RankUtilizationMonitor(), IntruderDimensions())
    task, run = train("labels", tiny_backbone("bert"), tmp_path, *monitors, AVERAGING[averaging]())
    after = {name: value.clone() for name, value in task.named_parameters()}
    step = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    rows = pq.read_table(run / "adapter_metrics" / "adapter_norms.parquet").to_pylist()
    found = {r["module"]: r["value"] for r in rows if r["state"] == "exported" and r["metric"] == "delta_norm"}
    assert {row["step"] for row in rows if row["state"] == "exported"} == {step}
    with temporary_weights(task, saved(run)):
        for delta in adapter_deltas(task):
            assert found[delta.module] == pytest.approx(float(delta.dense().norm()), rel=1e-5)
    assert all(torch.equal(value, after[name]) for name, value in task.named_parameters())
    said = capsys.readouterr().out
    assert f"rank (adapter/, step {step}): " in said
    assert f"intruder dimensions (adapter/, step {step}): " in said
    assert said.count("intruder dimensions") == 1


def test_without_validation_the_last_checkpoint_is_exported(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    _, run = train("labels", tiny_backbone("bert"), tmp_path, EMAWeightAveraging(decay=0.5), limit_val_batches=0)
    state = saved(run)
    for name, value in exported(run).items():
        if "lora_" in name:
            assert torch.equal(value, state[f"network.{name.removesuffix('.weight')}.default.weight"])
