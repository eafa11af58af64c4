"""`study audit`: which differences in anyone's table of results are more than chance, and which are noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lightning.analysis.metric_scale import TableScale, choose_metric, choose_scale, doubtful_scale_note
from lora_lightning.errors import ConfigurationError, DataError, few_names, suggest_names
from lora_lightning.metrics.direction import higher_is_better
from lora_lightning.statistics.analysis import (
    StudyAnalysis,
    analyze_study,
    better_than_recommended_note,
    weak_reference_note,
    wide_margin_note,
)
from lora_lightning.statistics.pairing import unpaired_seeds
from lora_lightning.statistics.study_results import ConfigurationResults, StudyResults
from lora_lightning.studies.example_outcomes import read_outcomes
from lora_lightning.studies.metric_column import RANKS, choose_metric_column
from lora_lightning.studies.results_table import ResultsTable, read_results_table

COSTS = ("trainable_parameters",)  # columns of which less is better, if the table has them


@dataclass(frozen=True)
class StudyAudit:
    """The verdicts on a table of results.

    Attributes:
        results: The table, as it was understood.
        analysis: The verdicts and the recommendation.
        notes: Sentences on what was left out or is not compared; empty if every cell counts.
    """

    results: StudyResults
    analysis: StudyAnalysis
    notes: tuple[str, ...]


def audit_results(
    source: Path | str | Mapping[str, Sequence[Any]],
    reference: str,
    *,
    metric: str | None = None,
    margin: float | None = None,
    direction: str | None = None,
    scale: str | None = None,
    costs: Sequence[str] | None = None,
    sequence: Sequence[str] = (),
    full_fine_tuning: str | None = None,
) -> StudyAudit:
    """Judges a table of results.

    The table has one run a row: the columns `configuration` and `seed`, a metric, and optionally costs and one column
    per test example, whose names start with `example_`. Their mean is the metric.

    Args:
        source: A CSV, TSV, JSON lines or Parquet file, or columns by name.
        reference: The configuration that the others are compared with; it should be chosen before results are seen.
        metric: The column that decides; `None` if there is only one that can be meant.
        margin: The largest loss of quality that does not matter, above 0: in points for fractions and percent, in
            percent for perplexity; `None` for 0.5 points or 1 percent.
        direction: `"higher"` or `"lower"` is better; `None` if the metric's name says it.
        scale: A `TableScale`, `None` to choose it by the metric's name and values.
        costs: Columns of which less is better, the most important first; `None` for `trainable_parameters`, if present.
        sequence: Configurations in a fixed order of tests, the most expensive first; others are tested with Holm's
            correction.
        full_fine_tuning: The configuration that is full fine-tuning, if there is one.

    Returns:
        Verdicts, and what was left out.

    Raises:
        LoraLightningError: If the table or an argument is wrong.
    """
    table = read_results_table(source)
    costs = [cost for cost in COSTS if cost in table.others] if costs is None else list(costs)
    if better := [cost for cost in costs if higher_is_better(cost)]:
        msg = f"--cost is {better[0]}, of which more is better; a cost is a column of which less is better, such as a "
        msg += "number of parameters, bytes or seconds"
        raise ConfigurationError(msg)
    metric, note_on_metric = (metric, "") if metric else choose_metric_column(table, costs)
    values = table.numbers(metric)
    known = [value for value in values if not math.isnan(value)]
    chosen = choose_scale(metric, known, scale)
    judged = choose_metric(metric, chosen, direction, margin)
    outcomes = read_outcomes(table, values, chosen, judged.stored_margin)
    reader = _RunReader(table, metric, values, chosen, costs, outcomes)
    name = Path(source).stem if isinstance(source, Path | str) else "table"
    results = StudyResults(
        name=name,
        metric=judged,
        configurations=reader.read_configurations(),
        reference=reference,
        costs=costs,
        sequence=tuple(sequence),
        full_fine_tuning=full_fine_tuning,
        unfinished=_missing_values(table, metric, values),
    )
    analysis = analyze_study(results)
    notes = [
        note_on_metric,
        results.unfinished,
        doubtful_scale_note(metric, known, chosen, is_given=scale is not None),
        *reader.notes,
        unpaired_runs_note(results),
        _check_order(results),
        wide_margin_note(results),
        weak_reference_note(results, analysis),
        better_than_recommended_note(results, analysis),
    ]
    return StudyAudit(results, analysis, tuple(note for note in notes if note))


class _RunReader:
    """Sorts the columns of a table into outcomes, settings and measurements."""

    def __init__(
        self,
        table: ResultsTable,
        metric: str,
        values: Sequence[float],
        scale: TableScale,
        costs: Sequence[str],
        outcomes: Mapping[int, NDArray[np.float64]],
    ) -> None:
        self.table, self.scale, self.values, self.outcomes = table, scale, values, outcomes
        others = [name for name in table.others if name != metric]
        if unknown := [cost for cost in costs if cost not in others]:
            msg = f"{table.table.name} has no column {unknown[0]!r} for a cost; {suggest_names(unknown[0], others)}"
            raise DataError(msg)
        ranks = [name for name in RANKS if name in others and name not in costs and table.describes(name)]
        self.rank_setting = next((name for name in ranks if table.is_numeric(name)), None)
        self.measurements = {
            name: table.numbers(name)
            for name in others
            if name in costs or (table.is_numeric(name) and name != self.rank_setting)
        }
        texts = [name for name in others if name not in self.measurements]
        self.settings = [name for name in texts if table.describes(name)]
        ignored = [name for name in texts if name not in self.settings]
        self.notes = [
            _empty_costs({cost: self.measurements[cost] for cost in costs}),
            _several_sizes(table, self.measurements),
            _runs_without_outcomes(table, values, self.outcomes),
            _unused_columns(ignored),
        ]

    def read_configurations(self) -> list[ConfigurationResults]:
        """Collects the runs of every configuration, in the order of the table."""
        return [self._read_configuration(name) for name in dict.fromkeys(self.table.configurations)]

    def _read_configuration(self, name: str) -> ConfigurationResults:
        rows = [row for row, own in enumerate(self.table.configurations) if own == name]
        kept = [row for row in rows if not math.isnan(self.values[row])]
        seeds = self.table.seeds
        measurements = {
            column: {seeds[row]: numbers[row] for row in rows if not math.isnan(numbers[row])}
            for column, numbers in self.measurements.items()
        }
        settings: dict[str, object] = {name: str(self.table.table.columns[name][rows[0]]) for name in self.settings}
        rank = self.table.numbers(self.rank_setting)[rows[0]] if self.rank_setting else None
        others = {name: value for name, value in settings.items() if name not in RANKS and "alpha" not in name.lower()}
        settings |= {self.rank_setting: rank} if self.rank_setting else {}
        return ConfigurationResults(
            name,
            settings,
            {seeds[row]: self.scale.stored_value(self.values[row]) for row in kept},
            {seeds[row]: self.outcomes[row] for row in kept if row in self.outcomes},
            {column: numbers for column, numbers in measurements.items() if numbers},
            rank=rank if rank is not None and rank > 0 else None,
            beside_rank=", ".join(f"{name} = {value}" for name, value in others.items()),
            failed_seeds=tuple(seeds[row] for row in rows if row not in kept),
        )


def _check_order(results: StudyResults) -> str:
    """Refuses a sequence of tests that starts with the smallest rank; a note says so of costs, which may be measured.

    Raises:
        ConfigurationError: If ranks never fall in the sequence, but rise.
    """
    sequence = [results.configuration(name) for name in results.sequence]
    ranks = [each.rank for each in sequence if each.rank is not None]
    if len(ranks) == len(sequence) > 1 and ranks == sorted(ranks) and ranks[0] < ranks[-1]:
        msg = (
            f"--sequence goes from the smallest rank, {ranks[0]:g}, to the largest one, {ranks[-1]:g}, but tests stop "
        )
        msg += "at the first configuration that is not proven; start with the most expensive one"
        raise ConfigurationError(msg)
    costs = [each.mean_of(cost) for each in sequence for cost in results.costs[:1]]
    if len(costs) > 1 and costs == sorted(costs) and costs[0] < costs[-1]:
        return (
            f"--sequence goes from the cheapest configuration to the most expensive one by {results.costs[0]}; tests "
            "stop at the first one that is not proven, so the other way around finds the cheapest one."
        )
    return ""


def _unused_columns(names: Sequence[str]) -> str:
    return f"Columns of texts that differ within a configuration are not used: {few_names(names)}." if names else ""


def _runs_without_outcomes(
    table: ResultsTable, values: Sequence[float], outcomes: Mapping[int, NDArray[np.float64]]
) -> str:
    runs = [row for row, value in enumerate(values) if not math.isnan(value)]
    bare = [table.run_of(row) for row in runs if row not in outcomes]
    if not table.examples or not bare:
        return ""
    return f"{len(bare)} of {len(runs)} runs have no test examples and are compared by seed only: {few_names(bare)}."


def _missing_values(table: ResultsTable, metric: str, values: Sequence[float]) -> str:
    missing = [table.run_of(row) for row, value in enumerate(values) if math.isnan(value)]
    if not missing:
        return ""
    return (
        f"{len(missing)} of {len(values)} runs have no finite {metric} and are left out, which favors a configuration "
        f"whose runs failed: {few_names(missing)}."
    )


def _empty_costs(costs: Mapping[str, Sequence[float]]) -> str:
    empty = {name: sum(map(math.isnan, numbers)) for name, numbers in costs.items()}
    counted = [f"{count} in {name!r}" for name, count in empty.items() if count]
    return f"Empty cells of costs are left out of their means: {few_names(counted)}." if counted else ""


def _several_sizes(table: ResultsTable, measurements: Mapping[str, Sequence[float]]) -> str:
    """A size is a fact of a configuration: if it differs between its runs, they may be of several configurations."""
    size = next((name for name in COSTS if name in measurements), None)
    if size is None:
        return ""
    found: dict[str, set[float]] = {}
    for name, number in zip(table.configurations, measurements[size], strict=True):
        found.setdefault(name, set()).update(() if math.isnan(number) else (number,))
    several = [f"{name!r} (from {min(own):.10g} to {max(own):.10g})" for name, own in found.items() if len(own) > 1]
    if not several:
        return ""
    return (
        f"{size!r} differs between the runs of a configuration, so that its mean counts: {few_names(several)}. If they "
        "are runs of several configurations, give each its own name."
    )


def unpaired_runs_note(results: StudyResults) -> str:
    """Says which configurations have seeds that the reference lacks, or lack some of its seeds.

    Args:
        results: What was measured.

    Returns:
        A sentence; empty if all runs are paired.
    """
    reference = results.configuration(results.reference)
    unpaired = {each.name: unpaired_seeds(each, reference) for each in results.configurations}
    counted = [f"{name!r} (seeds {few_names([*map(str, seeds)])})" for name, seeds in unpaired.items() if seeds]
    if not counted:
        return ""
    several = "configurations have" if len(counted) > 1 else "configuration has"
    return (
        f"{len(counted)} {several} other seeds than the reference {results.reference!r}; only the seeds that both have "
        f"are compared, without those of one side: {few_names(counted)}."
    )
