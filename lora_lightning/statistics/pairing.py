"""Pairs the results of two configurations by seed and test example."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_lightning.errors import ConfigurationError
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.paired import PairedDifference, paired_difference
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults

AGREEMENT = 1e-3  # between a seed's value and the mean of its outcomes, of their size; tables are rounded
NO_COMMON_SEED = "no seed in common"


def compare(configuration: ConfigurationResults, reference: ConfigurationResults, metric: Metric) -> PairedDifference:
    """Compares two configurations on their common seeds.

    Args:
        configuration: The one that is judged.
        reference: The one that it is compared with.
        metric: The metric that decides.

    Returns:
        Their mean paired difference, signed so that larger is better, in the unit of the values; with the failures of
        both, which limit what it proves.

    Raises:
        ConfigurationError: If they were tested on different numbers of examples.
    """
    if not common_seeds(configuration, reference):
        nothing = float("nan")
        found = PairedDifference(Interval(nothing, nothing, nothing), 0, 0, note=NO_COMMON_SEED)
    else:
        sign = 1.0 if metric.higher_is_better else -1.0
        first, second = paired_tables(configuration, reference)
        size = float(max(np.abs(first).max(), np.abs(second).max()))
        found = paired_difference(sign * (first - second), _limit(first, second, metric), size)
    return replace(found, failures=configuration.failures, failures_of_other=reference.failures)


def _limit(first: NDArray[np.float64], second: NDArray[np.float64], metric: Metric) -> float | None:
    """1 for hits; `None` for other numbers, such as the pseudo-values of F1, of which one example may change more."""
    hits = all(np.isin(table, (0.0, 1.0)).all() for table in (first, second))
    # All pseudo-values of a perfect F1 or AUROC are 1, too; those of another one are no hits.
    are_known = any(len(np.unique(table)) > 1 for table in (first, second)) or metric.name.lower().endswith(
        ("accuracy", "exact", "exact_match")
    )
    return 1.0 if hits and are_known and metric.scale is Scale.FRACTION else None


def paired_tables(*configurations: ConfigurationResults) -> list[NDArray[np.float64]]:
    """Arranges results so that equal places are of one seed and one test example.

    Args:
        configurations: With at least one seed in common.

    Returns:
        (common seeds, examples), float64, by configuration; (common seeds, 1) if outcomes of examples are missing.

    Raises:
        ConfigurationError: If they were tested on different numbers of examples.
    """
    seeds, first = common_seeds(*configurations), configurations[0]
    if not all(set(seeds) <= each.outcomes.keys() for each in configurations):
        return [np.array([[each.values[seed]] for seed in seeds]) for each in configurations]
    tables = [_table(each, seeds) for each in configurations]
    for each, table in zip(configurations, tables, strict=True):
        if table.shape != tables[0].shape:
            msg = (
                f"{first.name!r} has outcomes of {tables[0].shape[1]:,} test examples and {each.name!r} of "
                f"{table.shape[1]:,}; all configurations must be tested on the same examples in the same order"
            )
            raise ConfigurationError(msg)
    return tables


def common_seeds(*configurations: ConfigurationResults) -> list[int]:
    """Lists the seeds that all configurations ran with, ascending."""
    return sorted(set.intersection(*(set(each.values) for each in configurations)))


def unpaired_seeds(configuration: ConfigurationResults, reference: ConfigurationResults) -> tuple[int, ...]:
    """Lists the seeds that only one of two configurations ran with, ascending."""
    return tuple(sorted(configuration.values.keys() ^ reference.values.keys()))


def is_mean_of(value: float, outcomes: NDArray[np.float64]) -> bool:
    """Whether a metric, which may be rounded, is the mean of its examples.

    Args:
        value: The metric.
        outcomes: shape (examples,), float64, not empty.

    Returns:
        Whether they differ by at most 0.1 % of the largest outcome, so that an accuracy may have three digits.
    """
    size = min(max(1.0, abs(value)), float(np.abs(outcomes).max()))
    return abs(float(outcomes.mean()) - value) <= AGREEMENT * size


def check_study_results(results: StudyResults) -> None:
    """Checks that results fit together.

    Args:
        results: What a study measured.

    Raises:
        ConfigurationError: If a name is unknown or used twice, the margin is not above 0, or a value is not finite or
            not the mean of its outcomes.
    """
    names = [each.name for each in results.configurations]
    margin = results.metric.margin
    if not 0 < margin < float("inf"):
        msg = f"the margin is {margin}, and must be above 0: without one no finite study proves anything"
        raise ConfigurationError(msg)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"the configuration {twice[0]!r} occurs twice; give each configuration a name of its own"
        raise ConfigurationError(msg)
    asked = [results.reference, *results.sequence, *([results.full_fine_tuning] if results.full_fine_tuning else [])]
    if unknown := [name for name in asked if name not in names]:
        msg = f"there is no configuration {unknown[0]!r}; the configurations are {', '.join(map(repr, names))}"
        raise ConfigurationError(msg)
    if len(set(results.sequence)) < len(results.sequence) or results.reference in results.sequence:
        msg = f"the sequence of tests {list(results.sequence)} must name each configuration once, and not the reference"
        raise ConfigurationError(msg)
    for each in (*results.configurations, *results.truncated):
        _check_values(each.name, each.values, each.outcomes)


def _check_values(name: str, values: Mapping[int, float], outcomes: Mapping[int, NDArray[np.float64]]) -> None:
    for seed, value in values.items():
        mean = float(np.mean(outcomes[seed])) if seed in outcomes else value
        if not np.isfinite([value, mean]).all():
            msg = f"the result of {name!r} with seed {seed} is {value}; leave out runs without a finite result"
            raise ConfigurationError(msg)
        if seed in outcomes and not is_mean_of(value, outcomes[seed]):
            msg = f"the result of {name!r} with seed {seed} is {value:.6g}, but the mean of its outcomes {mean:.6g}"
            raise ConfigurationError(msg)


def _table(configuration: ConfigurationResults, seeds: list[int]) -> NDArray[np.float64]:
    rows = [np.asarray(configuration.outcomes[seed], dtype=np.float64) for seed in seeds]
    if len({len(row) for row in rows}) > 1:
        sizes = ", ".join(f"{len(row):,} with seed {seed}" for seed, row in zip(seeds, rows, strict=True))
        msg = f"{configuration.name!r} has outcomes of different numbers of test examples: {sizes}"
        raise ConfigurationError(msg)
    return np.stack(rows)
