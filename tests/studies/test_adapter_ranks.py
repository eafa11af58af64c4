"""The ranks of a trial's adapter against NumPy's SVD of dense updates."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapter_deltas
from lora_lightning.metrics import LabelSpace
from lora_lightning.studies.adapter_ranks import measure_ranks
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone


def trained_task(backbone: Path, lora: LoraSettings | None) -> SequenceClassificationTask:
    """A task whose adapters are not 0."""
    task = SequenceClassificationTask(str(backbone), lora=lora)
    task.adopt_labels(LabelSpace(["a", "b", "c"]))
    task.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "lora_" in name:
                parameter.normal_()
            if "lora_A" in name:  # singular values that differ, so that 90 % of the energy need fewer than 99 %
                parameter.mul_(0.4 ** torch.arange(len(parameter))[:, None])
    return task


def test_ranks_are_those_of_the_dense_updates(tiny_backbone: TinyBackbone) -> None:
    task = trained_task(tiny_backbone("bert"), LoraSettings(r=4, lora_alpha=8))
    spectra = [np.linalg.svd(delta.dense().double().numpy(), compute_uv=False) for delta in adapter_deltas(task)]
    shares = [values / values.sum() for values in spectra]
    effective = [np.exp(-(share[share > 1e-12] * np.log(share[share > 1e-12])).sum()) for share in shares]
    energies = [np.cumsum(values**2) / (values**2).sum() for values in spectra]
    ranks = sorted(int((energy < 0.99).sum()) + 1 for energy in energies)
    assert measure_ranks(task) == pytest.approx(
        {
            "rank_utilization": np.mean(effective) / 4,
            "effective_rank": np.mean(effective),
            "stable_rank": np.mean([(values**2).sum() / values[0] ** 2 for values in spectra]),
            "energy_rank_99": ranks[int(np.ceil(0.9 * len(ranks))) - 1],
        },
        rel=1e-5,
    )


def test_what_has_no_adapter_or_no_finite_one(tiny_backbone: TinyBackbone) -> None:
    assert measure_ranks(trained_task(tiny_backbone("bert"), None)) == {}
    task = trained_task(tiny_backbone("bert"), LoraSettings(r=2))
    first = next(parameter for name, parameter in task.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        first.fill_(torch.nan)
    assert measure_ranks(task).keys() == {"energy_rank_99"}
