"""What does it cost? Memory, time and size of each configuration on common seeds, and the Pareto front."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.statistics.pareto import pareto_front
from lora_lightning.statistics.study_results import StudyResults

WEIGHTS, ADAPTER = "weight_bytes", "adapter_bytes"
COSTS = (
    WEIGHTS,
    "peak_memory_bytes",
    "seconds_per_step",
    "wall_seconds",
    "inference_ms_adapter_batch_1",
    "inference_ms_adapter_batch_32",
    ADAPTER,
    "trainable_parameters",
)


@dataclass(frozen=True)
class CostRow:
    """What a configuration costs.

    Attributes:
        configuration: Its name.
        precision: Its precision.
        rank: r.
        quality: Mean of the metric, as shown, over the seeds that both precisions have at this rank; over all of its
            own if there is none.
        costs: Mean by cost over the same seeds; what was not measured is left out.
        savings: Of the quantized precision, by cost: percent less than the other precision at the same rank; negative
            if it costs more.
    """

    configuration: str
    precision: str
    rank: int
    quality: float
    costs: Mapping[str, float]
    savings: Mapping[str, float]


@dataclass(frozen=True)
class CostTable:
    """What all configurations cost.

    Attributes:
        rows: In the order of the study.
        pareto: By cost: names of the configurations that no other one beats in quality and cost at once.
    """

    rows: tuple[CostRow, ...]
    pareto: Mapping[str, tuple[str, ...]]


def cost_table(
    diagnosis: Diagnosis, results: StudyResults, weights: Mapping[str, float], adapters: Mapping[str, float]
) -> CostTable:
    """Arranges costs.

    Args:
        diagnosis: The diagnosis.
        results: What its study measured.
        weights: Memory of the model's weights by precision, at the compared rank.
        adapters: Size of the exported adapter by configuration.

    Returns:
        The table.
    """
    common = {rank: _common_seeds(diagnosis, results, rank) for rank in diagnosis.ranks}
    rows: list[CostRow] = []
    for precision in diagnosis.precisions:
        for rank in diagnosis.ranks:
            name = diagnosis.configuration(precision, rank)
            each = results.configuration(name)
            if not each.values:
                continue
            seeds = common[rank] or [*each.values]
            numbers = {
                cost: [each.measurements[cost][seed] for seed in seeds if seed in each.measurements[cost]]
                for cost in COSTS
                if cost in each.measurements
            }
            costs = {cost: fmean(own) for cost, own in numbers.items() if own}
            costs |= {WEIGHTS: weights[precision]} if precision in weights and rank == diagnosis.rank else {}
            costs |= {ADAPTER: adapters[name]} if name in adapters else {}
            ordered = {cost: costs[cost] for cost in COSTS if cost in costs}
            other = next((row for row in rows if row.rank == rank and row.precision != precision), None)
            savings = _savings(ordered, other.costs) if other is not None and common[rank] else {}
            quality = results.metric.shown_value(fmean(each.values[seed] for seed in seeds))
            rows.append(CostRow(name, precision, rank, quality, ordered, savings))
    return CostTable(tuple(rows), {cost: _front(rows, cost, results) for cost in COSTS if _known(rows, cost)})


def _common_seeds(diagnosis: Diagnosis, results: StudyResults, rank: int) -> list[int]:
    full, quantized = (
        results.configuration(diagnosis.configuration(precision, rank)).values for precision in diagnosis.precisions
    )
    return [seed for seed in full if seed in quantized]


def _savings(own: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {cost: 100 * (1 - own[cost] / other[cost]) for cost in own if other.get(cost)}


def _known(rows: list[CostRow], cost: str) -> bool:
    return any(cost in row.costs for row in rows)


def _front(rows: list[CostRow], cost: str, results: StudyResults) -> tuple[str, ...]:
    sign = 1.0 if results.metric.higher_is_better else -1.0
    kept = pareto_front([sign * row.quality for row in rows], [row.costs.get(cost, float("nan")) for row in rows])
    return tuple(row.configuration for row, on_front in zip(rows, kept, strict=True) if on_front)
