"""What does it cost? Memory, time and size of each configuration on common seeds, and the Pareto front."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.statistics.jackknife import Interval, jackknife_interval, mean_interval
from lora_lightning.statistics.pareto import pareto_front
from lora_lightning.statistics.study_results import StudyResults

Numbers = Mapping[str, Mapping[int, float]]  # by cost and seed

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
        costs: Mean by cost over the same seeds with its t interval; what was not measured is left out.
        savings: Of the quantized precision, by cost: percent less than the other precision at the same rank, with the
            jackknife's interval over the same seeds, of which both have runs; negative if it costs more.
    """

    configuration: str
    precision: str
    rank: int
    quality: float
    costs: Mapping[str, Interval]
    savings: Mapping[str, Interval]


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
    diagnosis: Diagnosis,
    results: StudyResults,
    weights: Mapping[str, float],
    adapters: Mapping[str, Mapping[int, float]],
) -> CostTable:
    """Arranges costs.

    Args:
        diagnosis: The diagnosis.
        results: What its study measured.
        weights: Memory of the model's weights by precision, at the compared rank; counted, and the same for all seeds.
        adapters: Size of the exported adapter by configuration and seed.

    Returns:
        The table.
    """
    common = {rank: _common_seeds(diagnosis, results, rank) for rank in diagnosis.ranks}
    rows: list[CostRow] = []
    others: dict[int, Numbers] = {}
    for precision in diagnosis.precisions:
        for rank in diagnosis.ranks:
            name = diagnosis.configuration(precision, rank)
            each = results.configuration(name)
            if not each.values:
                continue
            seeds = common[rank] or [*each.values]
            known = {**each.measurements, ADAPTER: adapters.get(name, {})}
            if precision in weights and rank == diagnosis.rank:
                known[WEIGHTS] = dict.fromkeys(seeds, weights[precision])
            numbers = {
                cost: {seed: known[cost][seed] for seed in seeds if seed in known[cost]}
                for cost in COSTS
                if cost in known
            }
            costs = {cost: mean_interval([*own.values()]) for cost, own in numbers.items() if own}
            savings = _savings(numbers, others.get(rank, {})) if common[rank] else {}
            others.setdefault(rank, numbers)
            quality = results.metric.shown_value(fmean(each.values[seed] for seed in seeds))
            rows.append(CostRow(name, precision, rank, quality, costs, savings))
    return CostTable(tuple(rows), {cost: _front(rows, cost, results) for cost in COSTS if _known(rows, cost)})


def _common_seeds(diagnosis: Diagnosis, results: StudyResults, rank: int) -> list[int]:
    full, quantized = (
        results.configuration(diagnosis.configuration(precision, rank)).values for precision in diagnosis.precisions
    )
    return [seed for seed in full if seed in quantized]


def _savings(own: Numbers, other: Numbers) -> dict[str, Interval]:
    found = {}
    for cost, numbers in own.items():
        seeds = [seed for seed in numbers if other.get(cost, {}).get(seed)]
        if seeds:
            found[cost] = _saving(*(np.array([side[cost][seed] for seed in seeds]) for side in (own, other)))
    return found


def _saving(own: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """In percent, of means over paired seeds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        without = 100 * (1 - (own.sum() - own) / (other.sum() - other))
    return jackknife_interval(float(100 * (1 - own.sum() / other.sum())), without)


def _mean(row: CostRow, cost: str) -> float:
    return row.costs[cost].value if cost in row.costs else float("nan")


def _known(rows: list[CostRow], cost: str) -> bool:
    return any(cost in row.costs for row in rows)


def _front(rows: list[CostRow], cost: str, results: StudyResults) -> tuple[str, ...]:
    sign = 1.0 if results.metric.higher_is_better else -1.0
    kept = pareto_front([sign * row.quality for row in rows], [_mean(row, cost) for row in rows])
    return tuple(row.configuration for row, on_front in zip(rows, kept, strict=True) if on_front)
