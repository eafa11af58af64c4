"""Ranks that a run shows are NumPy's; it ends with advice, goes on when resumed, and changes nothing of training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_lightning.callbacks import AdapterNormMonitor, RankUtilizationMonitor, rank_utilization
from lora_lightning.callbacks.rank_utilization import shown_modules
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.variants.adalora import AdaLoraSettings, ranks_in_use
from tests.callbacks.test_merge_equivalence import SETTINGS, TASKS, fit, fit_quantized, trainer_of
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150
from tests.tiny_models import FAMILIES

MONITORS = (AdapterNormMonitor, RankUtilizationMonitor)


@pytest.fixture
def no_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice from the spectra alone: these models have learnt nothing, and would get none."""
    monkeypatch.setattr(rank_utilization, "validate_rank", lambda *_: None)


def rows(folder: Path, table: str = "rank_utilization") -> list[dict[str, Any]]:
    (path,) = folder.rglob(f"{table}.parquet")
    return pq.read_table(path).to_pylist()


def steps(folder: Path, table: str = "rank_utilization") -> list[int]:
    """Steps that were measured, each once."""
    found = [(row["step"], row["module"], row["metric"]) for row in rows(folder, table) if row["state"] == "training"]
    assert len(found) == len(set(found))
    return sorted({step for step, _, _ in found})


def report(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("rank_utilization.json")
    return json.loads(path.read_text())


@pytest.mark.usefixtures("no_validation")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_runs_last_ranks_are_those_of_its_weights(
    family: str, tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = fit("intents", tiny_backbone(family), tmp_path, RankUtilizationMonitor())
    found = {(row["module"], row["metric"]): row["value"] for row in rows(tmp_path) if row["step"] == 4}
    ended = report(tmp_path)
    layers = adapted_layers(task)
    assert list(ended["adapters"]) == list(layers)
    used = []
    for name, layer in layers.items():
        a, b = (factor.detach().double().numpy() for factor in adapter_factors(layer))
        sigma = np.linalg.svd(layer.scaling["default"] * b @ a, compute_uv=False)[:4]
        shares = sigma / sigma.sum()
        effective = np.exp(-(shares * np.log(shares)).sum())
        used.append(effective / 4)
        assert found[name, "effective_rank"] == pytest.approx(effective, rel=1e-5)
        assert found[name, "utilization"] == pytest.approx(effective / 4, rel=1e-5)
        assert found[name, "stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)
        np.testing.assert_allclose(ended["adapters"][name]["singular_values"], sigma, rtol=1e-5)
    assert found["all", "utilization"] == pytest.approx(np.mean(used), rel=1e-5)
    assert f"rank (the last step): {ended['advice']}" in capsys.readouterr().out
    assert "of r = 4; r = " in ended["advice"]
    assert ended["advice"].endswith("only `lora-lightning compress RUN --output DIR` can tell.")


@pytest.mark.usefixtures("no_validation")
def test_adaloras_ranks_are_those_that_are_left_and_its_own_options_are_named(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = AdaLoraSettings(target_r=1, init_r=4)
    monkeypatch.setitem(SETTINGS, "lora", LoraSettings(adalora=budget))
    task = fit("intents", tiny_backbone("bert"), tmp_path, RankUtilizationMonitor())
    ended = report(tmp_path)
    assert {name: numbers["r"] for name, numbers in ended["adapters"].items()} == ranks_in_use(task)
    assert "of adalora.init_r = 4); an average rank of " in ended["advice"]
    assert "--model.lora.r=" not in ended["advice"]


@pytest.mark.usefixtures("no_validation")
def test_of_pissas_difference_the_rank_is_twice_r(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "lora", LoraSettings(r=4, init_lora_weights="pissa"))
    fit("intents", tiny_backbone("bert"), tmp_path, RankUtilizationMonitor())
    ended = report(tmp_path)
    assert {numbers["r"] for numbers in ended["adapters"].values()} == {8}
    assert "of 2 r = 8; plain LoRA of r = " in ended["advice"]
    assert "--model.lora.r=" not in ended["advice"]


def test_pictures_and_spectra_reach_tensorboard(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="table"), TensorBoardLogger(tmp_path, name="board")]
    fit("intents", tiny_backbone("bert"), tmp_path, RankUtilizationMonitor(2), logger=loggers)
    events = EventAccumulator(str(loggers[1].log_dir), size_guidance={"images": 0, "histograms": 0}).Reload()
    for picture in ("weights/rank/utilization_by_layer", "weights/rank/spectra"):
        images = events.Images(picture)
        assert [image.step for image in images] == [2, 4]
        assert all(image.width > 300 for image in images)
    name = "encoder.layer.1.attention.self.query"
    singular_values = events.Histograms("weights/rank/singular_values")[-1].histogram_value
    spectra = [each["singular_values"] for each in report(tmp_path)["adapters"].values()]
    assert singular_values.num == 4 * len(spectra)
    assert singular_values.max == pytest.approx(max(values[0] for values in spectra))
    tags = events.Tags()["scalars"]
    assert "weights/rank/effective_rank" in tags
    assert not [tag for tag in tags if name in tag]  # of single modules only if asked for
    assert steps(tmp_path) == [2, 4]


def test_without_a_logger_the_table_and_the_report_are_there(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    fit("intents", tiny_backbone("bert"), tmp_path, *(monitor() for monitor in MONITORS), logger=False)
    assert steps(tmp_path) == steps(tmp_path, "adapter_norms") == [4]
    assert report(tmp_path)["step"] == 4


def test_accumulated_batches_count_once_and_validations_between_steps_do_not(
    tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    options = {"max_epochs": 2, "limit_train_batches": 4, "accumulate_grad_batches": 4, "val_check_interval": 1}
    fit("questions", tiny_backbone("bert"), tmp_path, RankUtilizationMonitor(1), AdapterNormMonitor(), **options)
    assert steps(tmp_path) == steps(tmp_path, "adapter_norms") == [1, 2]


def test_training_is_the_same_with_and_without_monitors(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    options = {"max_epochs": 2, "val_check_interval": 2, "gradient_clip_val": 0.1}
    logger = TensorBoardLogger(tmp_path / "with")
    monitored = fit(
        "intents", tiny_backbone("bert"), tmp_path / "with", *(m(1) for m in MONITORS), logger=logger, **options
    )
    state = torch.get_rng_state()
    plain = fit("intents", tiny_backbone("bert"), tmp_path / "without", **options)
    assert torch.equal(torch.get_rng_state(), state)
    expected = plain.state_dict()
    for name, tensor in monitored.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_trains_on_as_without_monitors(bits: int, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    both = Both()
    monitored = fit_quantized(tiny_backbone("llama"), tmp_path / "with", both, bits)  # type: ignore[arg-type]
    plain = fit_quantized(tiny_backbone("llama"), tmp_path / "without", Callback(), bits)  # type: ignore[arg-type]
    expected = plain.state_dict()
    for name, tensor in monitored.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert steps(tmp_path / "with", "adapter_norms") == [1, 2, 3, 4]


class Both(AdapterNormMonitor):
    """Both monitors in one, for a helper that takes one callback."""

    def __init__(self) -> None:
        super().__init__(1)
        self.ranks = RankUtilizationMonitor(1)

    def record(self, trainer: Any, pl_module: Any) -> None:
        super().record(trainer, pl_module)
        self.ranks.record(trainer, pl_module)


def test_half_precision_adapters_are_measured(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = fit("intents", tiny_backbone("bert"), tmp_path, *(m() for m in MONITORS), precision="bf16-true")
    assert adapter_factors(next(iter(adapted_layers(task).values())))[0].dtype == torch.bfloat16
    for table in ("adapter_norms", "rank_utilization"):
        assert np.isfinite([row["value"] for row in rows(tmp_path, table)]).all()


def test_a_resumed_run_goes_on_in_its_table_and_picture(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    def run(epochs: int, checkpoint: Path | None) -> RankUtilizationMonitor:
        seed_everything(0, verbose=False)
        task, data = TASKS["intents"][1](str(tiny_backbone("bert")), tmp_path / "data")
        monitor = RankUtilizationMonitor()
        logger = TensorBoardLogger(tmp_path, name="run", version=0)
        trainer = trainer_of(tmp_path, monitor, AdapterNormMonitor(), logger=logger, max_epochs=epochs)
        trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return monitor

    run(1, None)
    run(3, None)  # went on for two epochs after the checkpoint; those are forgotten
    monitor = run(2, tmp_path / "1.ckpt")
    assert steps(tmp_path) == steps(tmp_path, "adapter_norms") == [4, 8]
    assert [[step for step, _ in curves] for curves in monitor.state_dict()["history"].values()] == [[4, 8]] * 6


def test_two_processes_measure_once(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    config = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {
            "class_path": "Clinc150DataModule",
            "init_args": {"data_dir": str(save_tiny_clinc150(tmp_path / "data")), "cache_dir": str(tmp_path)},
        },
        "trainer": {
            "callbacks": [{"class_path": monitor.__name__} for monitor in MONITORS],
            "max_epochs": 2,
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path), "name": "run"}},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    words = ["--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    words += ["--trainer.enable_progress_bar=false", "--checkpoint.monitor=val/loss"]
    command = [sys.executable, "-m", "lora_lightning", "fit", f"--config={tmp_path / 'run.yaml'}", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("rank (adapter/, step ") == 1
    assert len(steps(tmp_path)) == len(steps(tmp_path, "adapter_norms")) == 2


MODULES = [f"model.layers.{layer}.{kind}" for layer in range(5) for kind in ("q_proj", "k_proj", "mlp.up", "mlp.down")]


def test_the_middle_layer_is_drawn_unless_told_otherwise() -> None:
    assert shown_modules(MODULES, None) == [name for name in MODULES if ".2." in name]
    assert shown_modules(["a", "b"], None) == ["a", "b"]
    assert shown_modules(MODULES, ["1.q_proj", "model.layers.4.mlp.up"]) == [MODULES[4], MODULES[18]]
    assert len(shown_modules(MODULES, ["q_proj", "up"])) == 10


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (["v_proj"], "there is no adapter 'v_proj'; did you mean"),
        (["_proj"], "there is no adapter '_proj'"),
        (["q_proj", "k_proj", "up", "down"], "names 20 adapters, but a picture shows 1 to 16"),
        ([], "names 0 adapters"),
    ],
)
def test_modules_that_cannot_be_drawn_are_refused_before_training(wanted: list[str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        shown_modules(MODULES, wanted)
