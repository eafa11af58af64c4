"""A small version of benchmarks/study_calibration.py: error rates and coverage of studies with a known truth."""

import math
from pathlib import Path

import numpy as np
import pytest
from study_calibration import METRICS, Cell, draw, judge, markdown_table, simulate_cell, write_page

from lora_lightning.statistics.paired import paired_difference

STUDIES = 250


def standard_errors(rate: float) -> float:
    """Three standard errors of a rate in percent."""
    return 3 * math.sqrt(rate * (100 - rate) / STUDIES)


SLOW = {"auroc", "f1"}  # with three seeds alone: the benchmark has more
CELLS = [
    (metric, spread, seeds)
    for metric, kind in METRICS.items()
    for spread in (0.0, 2.0)
    for seeds in (3, 10)
    if spread in kind.spreads and (seeds == 3 or metric not in SLOW)
]


@pytest.mark.parametrize(("metric", "spread", "seeds"), CELLS)
def test_error_rates_and_coverage(metric: str, spread: float, seeds: int) -> None:
    cell = simulate_cell(metric, spread, seeds, STUDIES)
    assert 93 - standard_errors(95) <= cell.coverage
    if not metric.startswith("rare"):  # which are whole numbers, so that no interval hits 95 %
        assert cell.coverage <= 97.5 + standard_errors(97.5)
    assert cell.proven["-1"] <= 6 + standard_errors(6)
    assert cell.proven["-1.5"] <= cell.proven["-1"] < cell.proven["0"]


@pytest.mark.parametrize("metric", [name for name, kind in METRICS.items() if kind.limit is None or name == "accuracy"])
def test_many_studies_are_judged_as_single_ones(metric: str) -> None:
    kind = METRICS[metric]
    draws = draw(np.random.default_rng(5), 20, 4, 60)
    differences, truth = next(kind.simulate(draws, [-0.001], 0.01))
    bound = np.full(20, -0.02)
    covered, proven = judge(differences, truth, bound)
    for place, table in enumerate(differences):
        found = paired_difference(table)
        assert covered[place] == found.interval.contains(truth[place])
        assert proven[place] == (found.p_value_above(-0.02) <= 0.05)
    assert covered.any()


def test_equal_differences_are_judged_as_single_ones() -> None:
    tables = np.stack([np.zeros((3, 5)), np.full((3, 5), 0.1), np.eye(3, 5)])
    covered, proven = judge(tables, np.array([0.1, 0.0, 0.2]), np.full(3, -0.02))
    assert list(proven) == [True, False, bool(paired_difference(tables[2]).p_value_above(-0.02) <= 0.05)]
    assert list(covered) == [False, True, True]


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "log_perplexity"])
def test_the_truth_is_true(metric: str) -> None:
    draws = draw(np.random.default_rng(1), 300, 2, 400)
    differences, truth = next(METRICS[metric].simulate(draws, [-0.03], 0.02))
    error = differences.mean((1, 2)) - truth
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(300)
    assert error.std() < 0.05


def test_the_table_replaces_the_one_in_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- calibration: begin -->\nold\n<!-- calibration: end -->\nafter\n")
    cell = Cell("f1", 0.6, 3, 10, 95.0, {"-1.5": 0.0, "-1": 5.04, "0": 60.0}, 80.0, 20.0, 12.0, 40.0)
    write_page(page, [cell])
    write_page(page, [cell])
    text = page.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter\n")
    assert "old" not in text
    assert text.count("| f1 | 0.6 | 3 | 95.0 | 5.0 | 0.0 | 60.0 | 80.0 | 20.0 | 12.0 | 40.0 |") == 1
    assert len({line.count("|") for line in markdown_table([cell]).splitlines()}) == 1
