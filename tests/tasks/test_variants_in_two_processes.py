"""EVA and AdaLoRA under DDP: what looks at data or gradients ends with the same adapters in both processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from lora_lightning.lora.variants.adalora import ranks_in_use
from lora_lightning.tasks.base import AdaptationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150
from tests.variants import settings_of, train_classifier

VARIANTS = ("eva", "adalora")


class Witness(Callback):
    """Keeps what a process starts with, sees and ends with."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"seen": []}

    def on_train_start(self, _trainer: Any, task: AdaptationTask) -> None:  # type: ignore[override]
        self.found["start"] = adapters_of(task)

    def on_train_batch_end(self, _trainer: Any, _task: Any, _outputs: Any, batch: Any, _index: int) -> None:
        self.found["seen"].append(batch["input_ids"].tolist())

    def on_train_end(self, _trainer: Any, task: AdaptationTask) -> None:  # type: ignore[override]
        self.found |= {"end": adapters_of(task), "ranks": ranks_in_use(task)}


def adapters_of(task: AdaptationTask) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in task.named_parameters() if ".lora_" in name}


def in_process(rank: int, backbone: Path, data: Path, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for variant in VARIANTS:
        witness = Witness()
        settings = settings_of(variant)
        settings["lora"].target_modules = "all-linear"  # so that EVA's ranks differ
        train_classifier(backbone, data, folder, settings, devices=2, strategy="ddp", callbacks=[witness])
        torch.save(witness.found, folder / f"{variant}{rank}.pt")


@pytest.fixture(scope="module")
def folder(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes kept of one run of each variant."""
    folder = tmp_path_factory.mktemp("processes")
    data = save_tiny_clinc150(folder / "data")
    torch.multiprocessing.spawn(
        in_process, args=(tiny_backbone("bert"), data, folder, find_free_network_port()), nprocs=2
    )
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_processes_have_the_same_adapters(folder: Path, variant: str) -> None:
    left, right = (torch.load(folder / f"{variant}{rank}.pt", weights_only=True) for rank in (0, 1))
    assert left["seen"] != right["seen"]  # so that anything a process decided by itself would differ
    assert left["ranks"] == right["ranks"]
    for moment in ("start", "end"):
        assert left[moment].keys() == right[moment].keys()
        for name, tensor in left[moment].items():
            assert torch.equal(right[moment][name], tensor), (moment, name)
    assert any(not torch.equal(tensor, left["start"][name]) for name, tensor in left["end"].items())
    layers = 12
    if variant == "adalora":
        assert sum(left["ranks"].values()) == layers  # target_r is 1
        return
    assert sum(left["ranks"].values()) == 2 * layers  # r is 2
    assert len(set(left["ranks"].values())) > 1
    for name, tensor in left["start"].items():  # directions of the data, not noise
        if ".lora_A." in name:
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(len(tensor)), rtol=0, atol=1e-4)
