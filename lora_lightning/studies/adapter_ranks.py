"""How much of its rank the tested adapter of a trial uses."""

import json
import math
from typing import cast

from lightning import Callback, LightningModule, Trainer

from lora_lightning.analysis.spectrum import common_energy_rank, rank_numbers, singular_values
from lora_lightning.lora.delta import adapter_deltas
from lora_lightning.lora.variants.adalora import ranks_in_use
from lora_lightning.runs.files import save_text
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.tasks import AdaptationTask

RANKS = "adapter_ranks.json"
NAMES = {"utilization": "rank_utilization", "effective_rank": "effective_rank", "stable_rank": "stable_rank"}


class AdapterRanks(Callback):
    """Writes the ranks of the tested adapter into the run folder."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the adapter, whose weights are those of the best checkpoint, and writes the file."""
        numbers = measure_ranks(cast("AdaptationTask", pl_module))
        if not numbers or not trainer.is_global_zero:
            return
        path = run_folder_of(trainer) / RANKS
        save_text(path, json.dumps(numbers) + "\n")


def measure_ranks(task: AdaptationTask) -> dict[str, float]:
    """Measures how much of its rank an adapter uses, by the singular values of dW.

    Args:
        task: With its model.

    Returns:
        Means over the adapted layers: `rank_utilization`, in [0, 1], the effective rank as a share of the rank that dW
        can have; `effective_rank` and `stable_rank`; and `energy_rank_99`, the rank at which nine of ten layers keep
        99 % of their energy. Without numbers that are not finite; empty without adapters.
    """
    deltas = adapter_deltas(task)
    if not deltas:
        return {}
    spectra = singular_values(deltas)
    uses_budget = task.lora is not None and task.lora.adalora is not None
    ranks = ranks_in_use(task) if uses_budget else {delta.name: delta.r for delta in deltas}
    each = [rank_numbers(spectrum, r) for spectrum, r in zip(spectra, ranks.values(), strict=True)]
    means = {name: sum(numbers[key] for numbers in each) / len(each) for key, name in NAMES.items()}
    finite = [spectrum for spectrum in spectra if spectrum.isfinite().all()]
    means["energy_rank_99"] = float(common_energy_rank(finite, 0.99))
    return {name: value for name, value in means.items() if math.isfinite(value)}
