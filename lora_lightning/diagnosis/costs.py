"""What does it cost? Memory, time and size of each configuration on common seeds, and the Pareto front."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.statistics.jackknife import Interval, jackknife_interval, mean_interval
from lora_lightning.statistics.pareto import pareto_front
from lora_lightning.statistics.study_results import StudyResults

Numbers = Mapping[str, Mapping[int, float]]  # by cost and seed

WEIGHTS, ADAPTER, TRAINABLE = "weight_bytes", "adapter_bytes", "trainable_parameters"
PEAK_MEMORY, STEP, WALL = "peak_memory_bytes", "seconds_per_step", "wall_seconds"
INFERENCE = ("inference_ms_adapter_batch_1", "inference_ms_adapter_batch_32")
COSTS = (WEIGHTS, PEAK_MEMORY, STEP, WALL, *INFERENCE, ADAPTER, TRAINABLE)
PROCESS_MEMORY = (
    "on a CPU it is that of the whole process, with Python, libraries and what earlier runs have left there, so it "
    "grows with the order of runs, in which one precision comes before the other"
)


@dataclass(frozen=True)
class CostRow:
    """What a configuration costs.

    Attributes:
        configuration: Its name.
        precision: Its precision.
        rank: r.
        seeds: Those of the means: of both precisions at this rank; all of its own if they have none in common.
        quality: Mean of the metric, as shown.
        costs: Mean by cost with its t interval; what was not measured is left out.
        savings: Of the quantized precision, by cost: percent less than the other precision at the same rank, with the
            jackknife's interval over the same seeds, of which both have runs; negative if it costs more.
    """

    configuration: str
    precision: str
    rank: int
    seeds: tuple[int, ...]
    quality: float
    costs: Mapping[str, Interval]
    savings: Mapping[str, Interval]


@dataclass(frozen=True)
class Front:
    """The Pareto front of a cost, among means over the same seeds: the compared rank has more of them than others.

    Attributes:
        seeds: Those that all configurations with this cost have.
        points: Mean cost and mean of the metric, as shown, by configuration; empty without a seed in common.
        best: Names of the configurations that no other one beats in quality and cost at once.
    """

    seeds: tuple[int, ...]
    points: Mapping[str, tuple[float, float]]
    best: tuple[str, ...]


@dataclass(frozen=True)
class CostTable:
    """What all configurations cost.

    Attributes:
        rows: In the order of the study.
        pareto: By cost.
        is_process_memory: Whether peak memory is that of the whole process, as on a CPU. It has no savings and no front
            then, since runs that are alike differ by what came before them.
        devices: By cost: names of the devices that its times are of, if there are several. It has no savings and no
            front then, since they would be those of the devices.
    """

    rows: tuple[CostRow, ...]
    pareto: Mapping[str, Front]
    is_process_memory: bool = False
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def note_on_devices(self) -> str:
        """Which times are not compared, and why, as a sentence; empty if all are."""
        known = {cost for row in self.rows for cost in row.costs}
        own = {cost: names for cost, names in self.devices.items() if cost in known}
        if not own:
            return ""
        named = ", ".join(cost.replace("_", " ") for cost in own)
        devices = ", ".join(dict.fromkeys(name for names in own.values() for name in names))
        note = f"Times are not compared ({named}): they are of different devices ({devices})"
        return f"{note}; diagnose run --timings measures time a step and inference of all runs without timings on one."


def cost_table(
    diagnosis: Diagnosis,
    results: StudyResults,
    weights: Mapping[str, float],
    adapters: Mapping[str, Mapping[int, float]],
    *,
    is_process_memory: bool = False,
    devices: Mapping[str, tuple[str, ...]] | None = None,
) -> CostTable:
    """Arranges costs.

    Args:
        diagnosis: The diagnosis.
        results: What its study measured.
        weights: Memory of the model's weights by configuration; counted, and the same for all seeds.
        adapters: Size of the exported adapter by configuration and seed.
        is_process_memory: Whether peak memory is that of the whole process.
        devices: By cost: names of the devices that its times are of, if there are several.

    Returns:
        The table.
    """
    apart = {**(devices or {}), **({PEAK_MEMORY: ()} if is_process_memory else {})}  # what is not compared
    common = {rank: _common_seeds(diagnosis, results, rank) for rank in diagnosis.ranks}
    rows: list[CostRow] = []
    others: dict[int, Numbers] = {}
    every: dict[str, Numbers] = {}
    for precision in diagnosis.precisions:
        for rank in diagnosis.ranks:
            name = diagnosis.configuration(precision, rank)
            each = results.configuration(name)
            if not each.values:
                continue
            seeds = common[rank] or [*each.values]
            known = {**each.measurements, ADAPTER: adapters.get(name, {})}
            if name in weights:
                known[WEIGHTS] = dict.fromkeys(each.values, weights[name])
            every[name] = known
            numbers = {
                cost: {seed: known[cost][seed] for seed in seeds if seed in known[cost]}
                for cost in COSTS
                if cost in known
            }
            costs = {cost: mean_interval([*own.values()]) for cost, own in numbers.items() if own}
            savings = _savings(numbers, others.get(rank, {})) if common[rank] else {}
            savings = {cost: saving for cost, saving in savings.items() if cost not in apart}
            others.setdefault(rank, numbers)
            quality = results.metric.shown_value(fmean(each.values[seed] for seed in seeds))
            rows.append(CostRow(name, precision, rank, tuple(seeds), quality, costs, savings))
    shown = [cost for cost in COSTS if any(cost in row.costs for row in rows)]
    fronts = {cost: _front(every, cost, results) for cost in shown if cost not in apart}
    return CostTable(tuple(rows), fronts, is_process_memory, devices or {})


def weights_by_rank(
    diagnosis: Diagnosis, results: StudyResults, compared: Mapping[str, float], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Counts the memory of weights at every rank: that of the compared one, with adapters of another size.

    Args:
        diagnosis: The diagnosis.
        results: What its study measured, with the number of trained parameters of each run.
        compared: Memory of the model's weights by precision, at the compared rank, in bytes, adapters included.
        sizes: Bytes of a number of an adapter by precision.

    Returns:
        Bytes by configuration; without those of which no run has a number of parameters.
    """
    found = {}
    for precision, size in compared.items():
        of_rank = {rank: diagnosis.configuration(precision, rank) for rank in diagnosis.ranks}
        found[of_rank[diagnosis.rank]] = size
        trained = {rank: [*_trainable(results, name)] for rank, name in of_rank.items()}
        if own := trained[diagnosis.rank]:
            found |= {of_rank[r]: size + sizes[precision] * (each[0] - own[0]) for r, each in trained.items() if each}
    return found


def _trainable(results: StudyResults, name: str) -> Iterable[float]:
    """The number of trained parameters of each run of a configuration; what depends on the rank is the adapters."""
    return results.configuration(name).measurements.get(TRAINABLE, {}).values()


def note_on_missing_costs(table: CostTable) -> str:
    """Names the costs that nobody measured, which the table has no column for.

    Args:
        table: The table.

    Returns:
        A sentence; empty if all were measured.
    """
    names: dict[str, tuple[str, ...]] = {"memory of the weights": (WEIGHTS,), "peak memory": (PEAK_MEMORY,)}
    names |= {"time a step": (STEP,), "inference time": INFERENCE}
    known = {cost for row in table.rows for cost in row.costs}
    lacking = [name for name, costs in names.items() if not known & {*costs}]
    if not lacking:
        return ""
    timed = "time a step" in lacking or "inference time" in lacking
    hint = "; diagnose run --timings measures the times of all runs" if timed else ""
    return f"Costs that were not measured: {', '.join(lacking)}{hint}."


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


def _front(every: Mapping[str, Numbers], cost: str, results: StudyResults) -> Front:
    known = {name: numbers[cost] for name, numbers in every.items() if numbers.get(cost)}
    values = {name: results.configuration(name).values for name in known}
    common = set.intersection(*(each.keys() & values[name].keys() for name, each in known.items()))
    if not common:
        return Front((), {}, ())
    points = {
        name: (
            fmean(each[seed] for seed in common),
            results.metric.shown_value(fmean(values[name][seed] for seed in common)),
        )
        for name, each in known.items()
    }
    sign = 1.0 if results.metric.higher_is_better else -1.0
    kept = pareto_front([sign * quality for _, quality in points.values()], [price for price, _ in points.values()])
    best = tuple(name for name, on_front in zip(points, kept, strict=True) if on_front)
    return Front(tuple(sorted(common)), points, best)
