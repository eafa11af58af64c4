"""Power against statsmodels, published facts and simulation; what is missing, in words."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from lora_lightning.statistics.paired import VarianceComponents, paired_difference
from lora_lightning.statistics.power import missing_evidence, planned_power, power_with_all_seeds, round_up

SEEDS_ONLY = VarianceComponents(1.0, 0.0, 0.0)


@pytest.mark.parametrize("seeds", [2, 3, 8, 30])
@pytest.mark.parametrize("effect", [0.1, 0.5, 1.0, 2.0])
def test_seeds_alone_are_a_t_test(seeds: int, effect: float) -> None:
    expected = TTestPower().power(effect, seeds, 0.05, alternative="larger")
    assert planned_power(SEEDS_ONLY, effect, seeds, 0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("ratio", "seeds"), [(0.5, 27), (1.0, 8), (1.5, 5), (2.0, 4)])
def test_seeds_for_80_percent(ratio: float, seeds: int) -> None:
    found = missing_evidence(SEEDS_ONLY, ratio, 2, 0)
    assert found is not None
    assert str(found) == f"{seeds - 2} more seeds"


@pytest.mark.parametrize(("examples", "margin"), [(277, 4.7), (408, 3.9)])
def test_small_test_sets_cannot_prove_small_margins(examples: int, margin: float) -> None:
    discordant = VarianceComponents(0.0, 0.1, 0.0)  # 10 % of the examples, all seeds alike
    assert power_with_all_seeds(discordant, (margin - 0.1) / 100, examples) < 0.8
    assert power_with_all_seeds(discordant, (margin + 0.1) / 100, examples) > 0.8
    found = missing_evidence(discordant, 0.005, 5, examples)
    assert found is not None
    assert str(found).startswith("no number of seeds will do: 2")
    assert str(found).endswith("more test examples")


def test_both_may_be_missing() -> None:
    found = missing_evidence(VarianceComponents(1e-5, 0.02, 0.02), 0.005, 3, 1500)
    assert found is not None
    assert (found.examples > 0, found.seeds > 0) == (True, True)
    assert planned_power(VarianceComponents(1e-5, 0.02, 0.02), 0.005, 3 + found.seeds, 1500 + found.examples) >= 0.8


@pytest.mark.parametrize("distance", [1e-5, 1e-9, 0.0])
def test_seeds_that_nobody_can_train_are_no_advice(distance: float) -> None:
    assert missing_evidence(SEEDS_ONLY, distance, 3, 0) is None
    found = missing_evidence(VarianceComponents(1.0, 1e-12, 1e-12), distance, 3, 400)
    assert found is None


def test_seeds_are_rounded_up() -> None:
    found = missing_evidence(SEEDS_ONLY, 0.1, 3, 0)
    assert str(found) == "620 more seeds"


def test_nothing_proves_a_difference_beyond_the_margin() -> None:
    assert missing_evidence(SEEDS_ONLY, -0.1, 3, 0) is None


def test_planned_power_is_met_in_simulations() -> None:
    random = np.random.default_rng(0)
    seeds, examples, distance = 5, 200, 0.16
    components = VarianceComponents(0.005, 0.2, 0.3)
    tables = (
        random.normal(0, 0.005**0.5, (1000, seeds, 1))
        + random.normal(0, 0.2**0.5, (1000, 1, examples))
        + random.normal(0, 0.3**0.5, (1000, seeds, examples))
    )
    proven = np.mean([paired_difference(table).p_value_above(-distance) <= 0.05 for table in tables])
    assert proven == pytest.approx(planned_power(components, distance, seeds, examples), abs=0.04)


@pytest.mark.parametrize(("number", "rounded"), [(7, 7), (42, 42), (2841, 2900), (2900, 2900), (100_001, 110_000)])
def test_plans_are_rounded_up(number: int, rounded: int) -> None:
    assert round_up(number) == rounded
