"""What does each merge target do to an adapter that was trained on a quantized base?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_lightning.backbones import load_original_weights
from lora_lightning.diagnosis.opened_runs import OpenedRun
from lora_lightning.errors import BackboneError
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.merging import merge_targets, merged_adapters, without_adapters
from lora_lightning.lora.quantized import computing_in_float32, quantized_bits
from lora_lightning.statistics.recovery import Recovery, recovery_ratio
from lora_lightning.tasks.held_out_batches import isolated_evaluation
from lora_lightning.tasks.outcome_rows import SCORE, WEIGHT

Array = NDArray[np.float64]
DEQUANTIZED = "dequantized"  # the merge target that is recommended, since it should lose nothing
KEPT = 0.98  # of the adapter's gain: what is below it has lost a part


@dataclass(frozen=True)
class TargetRecovery:
    """What is left of the adapter's gain after a merge.

    Attributes:
        target: `dequantized`, `original` or `requantized`.
        recovery: The recovery ratio of the log-likelihood, with what it is a ratio of.
    """

    target: str
    recovery: Recovery


@dataclass(frozen=True)
class MergeRecoveries:
    """What each target does.

    Attributes:
        run: Title of the run.
        targets: In the order of `merge_targets`.
        note: Why a target is missing; empty if none is.
    """

    run: str
    targets: tuple[TargetRecovery, ...]
    note: str


def measure_merges(opened: OpenedRun) -> MergeRecoveries:
    """Merges a run's adapter in memory into each target.

    Args:
        opened: A run with a quantized base.

    Returns:
        The recovery ratios; none if the task has no scores.
    """
    task, note, originals = opened.task, "", None
    layers = [name for name, layer in adapted_layers(task).items() if quantized_bits(layer.get_base_layer())]
    try:
        originals = load_original_weights(task.transformers_model, task.backbone, layers)
    except BackboneError as error:
        note = f"the target original was not measured: {error}"
    found = []
    # A merged layer multiplies in float32; the adapter's own model must not round where that one does not.
    with computing_in_float32(task.built_network):
        adapted, weights = _scores(opened)
        with isolated_evaluation(task), without_adapters(task):
            base, _ = _scores(opened)
        for target in merge_targets(task, originals) if len(adapted) else ():
            with isolated_evaluation(task), merged_adapters(task, target, originals):
                merged, _ = _scores(opened)
            found.append(TargetRecovery(target, recovery_ratio(base, adapted, merged, weights)))
    return MergeRecoveries(opened.run.title, tuple(found), note)


def _scores(opened: OpenedRun) -> tuple[Array, Array]:
    rows = opened.examples.measure(opened.task.built_network).rows
    if SCORE not in rows:
        return np.zeros(0), np.zeros(0)
    return rows[SCORE].astype(np.float64), rows[WEIGHT].astype(np.float64)
