"""Claims are judged by planted exponents, ratios and differences."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from lora_lightning.reports.claim_rows import claim_rows
from lora_lightning.statistics.analysis import analyze_study
from lora_lightning.statistics.claims import Claim, ClaimFinding, Quantity, judge_claims
from lora_lightning.statistics.equal_loss import differences_at_equal_loss
from lora_lightning.statistics.learning_rate_optimum import mean_scores, rate_optimum
from lora_lightning.statistics.power_law import lack_of_fit, log_log_slope, neighboring_exponents
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults
from lora_lightning.statistics.verdicts import ClaimVerdict
from tests.statistics.studies import rank_study

RATES = [1e-3 * 2.0**power for power in range(-4, 5)]


def found(quantity: Quantity, results: StudyResults, low: float, high: float, **further: object) -> ClaimFinding:
    claim = Claim("claim", "source", quantity, low, high, **further)  # type: ignore[arg-type]
    return judge_claims(replace(results, claims=[claim]))[0]


def tried(optimum: float, seeds: int = 3, spread: float = 0.002, key: int = 0) -> dict[float, dict[int, float]]:
    """Validation accuracies on a parabola in log rate; the optimum of each seed differs."""
    random = np.random.default_rng(key)
    shifts = random.normal(0, spread, seeds)
    return {
        rate: {seed: 0.9 - 0.01 * (math.log(rate / optimum) - shift) ** 2 for seed, shift in enumerate(shifts)}
        for rate in RATES
    }


def study_of_rates(optima: Mapping[str, float], ranks: Mapping[str, float]) -> StudyResults:
    configurations = [
        ConfigurationResults(name, {}, {0: 0.9}, rank=ranks.get(name), tried_rates=tried(optimum, key=place))
        for place, (name, optimum) in enumerate(optima.items())
    ]
    return StudyResults("rates", Metric("accuracy"), configurations, next(iter(optima)))


@pytest.mark.parametrize("optimum", [3e-4, 1e-3, 1.7e-3, 6e-3])
def test_the_vertex_of_a_parabola_is_found_between_rates(optimum: float) -> None:
    scores = mean_scores(tried(optimum, spread=0), [0, 1, 2], higher_is_better=True)
    assert math.exp(rate_optimum(scores).log_rate) == pytest.approx(optimum, rel=1e-9)
    assert not rate_optimum(scores).at_edge


def test_losses_count_the_other_way_round() -> None:
    losses = {
        rate: {seed: -score for seed, score in scores.items()} for rate, scores in tried(1.7e-3, spread=0).items()
    }
    scores = mean_scores(losses, [0], higher_is_better=False)
    assert math.exp(rate_optimum(scores).log_rate) == pytest.approx(1.7e-3, rel=1e-9)


def test_an_optimum_at_the_edge_is_the_best_rate_that_was_tried() -> None:
    """Also beside rates that failed: nobody knows how good one just below them would be."""
    for scores, best in (
        ({1e-3: 0.5, 2e-3: 0.6, 4e-3: 0.7}, 4e-3),
        ({1e-3: 0.5}, 1e-3),
        ({1e-3: 0.5, 2e-3: 0.6, 4e-3: 0.7, 8e-3: -math.inf}, 4e-3),
        ({1e-3: -math.inf, 2e-3: 0.7, 4e-3: 0.6}, 2e-3),
        ({1e-3: 0.5, 2e-3: 0.7, 4e-3: -math.inf}, 2e-3),
    ):
        found = rate_optimum(scores)
        assert found.at_edge
        assert math.exp(found.log_rate) == pytest.approx(best)


def test_rates_far_away_do_not_move_the_optimum() -> None:
    scores = {1e-3: 0.70, 2e-3: 0.72, 4e-3: 0.71, 8e-3: 0.3, 16e-3: 0.0}
    near = rate_optimum({rate: scores[rate] for rate in (1e-3, 2e-3, 4e-3)})
    assert rate_optimum(scores) == near
    assert not near.at_edge
    flat = rate_optimum({1e-3: 0.7, 2e-3: 0.7, 4e-3: 0.7, 5e-4: 0.6})
    assert 5e-4 <= math.exp(flat.log_rate) <= 2e-3


def test_a_rate_without_one_of_the_seeds_cannot_be_the_best() -> None:
    scores = mean_scores({1e-3: {0: 0.5, 1: 0.5}, 2e-3: {0: 0.9}}, [0, 1], higher_is_better=True)
    assert scores == {1e-3: 0.5, 2e-3: -math.inf}


def test_an_exponent_is_that_of_a_power_law() -> None:
    x = np.array([1.0, 2, 4, 8, 32])
    assert log_log_slope(x, 3.0 * x**-0.37) == pytest.approx(-0.37)


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [(0.0, ClaimVerdict.PASS), (-1.0, ClaimVerdict.FAIL), (0.8, ClaimVerdict.FAIL)],
)
def test_whether_the_best_rate_depends_on_rank(exponent: float, verdict: ClaimVerdict) -> None:
    ranks = {f"r = {r}": float(r) for r in (1, 2, 4, 8)}
    study = study_of_rates({name: 1e-3 * (r / 2) ** exponent for name, r in ranks.items()}, ranks)
    finding = found(Quantity.LEARNING_RATE_EXPONENT, study, -0.25, 0.25)
    assert finding.intervals[""].value == pytest.approx(exponent, abs=0.003)
    assert finding.verdict is verdict
    assert finding.seeds == 3


def test_the_interval_of_an_exponent_is_that_of_the_seeds() -> None:
    """A shift of all optima of a seed leaves the slope; shifts that differ by rank do not."""
    ranks = {"r = 1": 1.0, "r = 8": 8.0}
    study = study_of_rates(dict.fromkeys(ranks, 1e-3), ranks)
    slopes = np.array([-0.1, 0.05, 0.2])
    tilted = {
        rate: {s: 0.9 - 0.01 * (math.log(rate / 1e-3) - slope * math.log(8)) ** 2 for s, slope in enumerate(slopes)}
        for rate in RATES
    }
    base = {rate: dict.fromkeys(range(3), values[0]) for rate, values in tried(1e-3, 1, spread=0).items()}
    first, second = study.configurations
    study = replace(study, configurations=[replace(first, tried_rates=base), replace(second, tried_rates=tilted)])
    interval = found(Quantity.LEARNING_RATE_EXPONENT, study, -0.25, 0.25).intervals[""]
    half = 4.302653 * slopes.std(ddof=1) / math.sqrt(3)  # Student's t with 2 degrees of freedom
    assert interval.value == pytest.approx(slopes.mean(), abs=1e-9)
    assert interval.high - interval.value == pytest.approx(half, rel=1e-6)


def test_a_ratio_of_rates_is_a_geometric_mean_over_ranks() -> None:
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates({"full": 1e-4 * 2, "r = 1": 1e-3, "r = 4": 4e-3}, ranks)
    finding = found(Quantity.LEARNING_RATE_RATIO, study, 5, 20, against="full")
    assert finding.intervals[""].value == pytest.approx(10, rel=0.01)
    assert finding.verdict is ClaimVerdict.PASS
    assert found(Quantity.LEARNING_RATE_RATIO, study, 11, 20).verdict is ClaimVerdict.FAIL


def test_an_optimum_at_the_edge_decides_nothing() -> None:
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates({"full": 1e-5, "r = 1": 1e-3, "r = 4": 1e-3}, ranks)
    finding = found(Quantity.LEARNING_RATE_RATIO, study, 5, 20)
    assert finding.verdict is ClaimVerdict.UNDECIDED
    assert finding.note.startswith("The best learning rate of full is the smallest or the largest one")
    inner = found(Quantity.LEARNING_RATE_EXPONENT, study, -0.25, 0.25)
    assert inner.verdict is ClaimVerdict.PASS


def test_an_optimum_at_the_edge_without_one_seed_decides_nothing() -> None:
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates({"r = 1": 1e-3, "r = 4": 1e-3}, ranks)
    first, second = study.configurations
    steep = {rate: {**values, 0: -5.0 * math.log(rate / 1e-3) ** 2} for rate, values in second.tried_rates.items()}
    alone = {rate: {**values, 1: 10 * rate, 2: 10 * rate} for rate, values in steep.items()}
    study = replace(study, configurations=[first, replace(second, tried_rates=alone)])
    finding = found(Quantity.LEARNING_RATE_EXPONENT, study, -2, 2)
    assert finding.verdict is ClaimVerdict.UNDECIDED
    assert finding.note.startswith("The best learning rate of r = 4")


def test_a_rate_with_a_failed_run_is_out_in_every_part_of_the_jackknife() -> None:
    """Without the seed that failed, the rate would be the best."""
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates({"r = 1": 1e-3, "r = 4": 1e-3}, ranks)
    first, second = study.configurations
    rates = {rate: dict(values) for rate, values in second.tried_rates.items()}
    rates[8e-3] = {0: 1.0, 1: 1.0}
    with_failed = replace(study, configurations=[first, replace(second, tried_rates=rates)])
    plain = found(Quantity.LEARNING_RATE_EXPONENT, study, -0.25, 0.25).intervals
    assert found(Quantity.LEARNING_RATE_EXPONENT, with_failed, -0.25, 0.25).intervals == plain


def test_best_rates_that_all_seeds_share_have_no_interval() -> None:
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates(dict.fromkeys(ranks, 1e-3), ranks)
    same = {rate: dict.fromkeys(range(3), values[0]) for rate, values in study.configurations[0].tried_rates.items()}
    study = replace(study, configurations=[replace(each, tried_rates=same) for each in study.configurations])
    finding = found(Quantity.LEARNING_RATE_EXPONENT, study, -0.25, 0.25)
    assert (finding.verdict, finding.note[:9]) == (ClaimVerdict.UNDECIDED, "All seeds")


def test_configurations_whose_rates_all_failed_decide_nothing(recwarn: pytest.WarningsRecorder) -> None:
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates({"full": 2e-4, "r = 1": 1e-3, "r = 4": 1e-3}, ranks)
    failed = {rate: {} for rate in RATES}
    rows = [replace(study.configurations[0], tried_rates=failed), *study.configurations[1:]]
    finding = found(Quantity.LEARNING_RATE_RATIO, replace(study, configurations=rows), 5, 20)
    assert (finding.verdict, finding.seeds) == (ClaimVerdict.UNDECIDED, 0)
    assert not recwarn.list


def test_runs_that_are_missing_decide_nothing() -> None:
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates({"full": 2e-4, "r = 1": 1e-3, "r = 4": 1e-3}, ranks)
    rows = [replace(study.configurations[0], tried_rates={}), *study.configurations[1:]]
    finding = found(Quantity.LEARNING_RATE_RATIO, replace(study, configurations=rows), 5, 20)
    assert (finding.verdict, finding.intervals, finding.seeds) == (ClaimVerdict.UNDECIDED, {}, 0)
    assert "not finished" in finding.note


def test_how_a_measurement_grows_with_rank() -> None:
    study = rank_study(seeds=3, examples=50)
    rows = [
        replace(each, measurements={"stable_rank": {s: (each.rank or 0) ** (0.27 + 1e-4 * s) for s in range(3)}})
        for each in study.configurations
    ]
    study = replace(study, configurations=rows, costs=())
    finding = found(Quantity.EXPONENT, study, 0.23, 0.30, measurement="stable_rank")
    assert finding.intervals[""].value == pytest.approx(0.27, abs=2e-4)
    assert finding.verdict is ClaimVerdict.PASS
    other = found(Quantity.EXPONENT, study, 0.23, 0.30, measurement="other")
    assert other.verdict is ClaimVerdict.UNDECIDED
    assert other.note.startswith("No run of r = 64, r = 32")
    lacking = replace(study, configurations=[replace(rows[0], measurements={}), *rows[1:]])
    without = found(Quantity.EXPONENT, lacking, 0.23, 0.30, measurement="stable_rank")
    assert (without.verdict, without.note) == (
        ClaimVerdict.UNDECIDED,
        "No run of r = 64 has stable_rank, so that nothing is decided.",
    )


def measured(means: list[float], seeds: int = 3, noise: float = 0.01, key: int = 0) -> StudyResults:
    """Stable ranks at r = 2, 4, 8, ... with noise of each run."""
    random = np.random.default_rng(key)
    rows = [
        ConfigurationResults(
            f"r = {2 ** (place + 1)}",
            {},
            dict.fromkeys(range(seeds), 0.9),
            measurements={"stable_rank": {s: mean * math.exp(random.normal(0, noise)) for s in range(seeds)}},
            rank=2.0 ** (place + 1),
        )
        for place, mean in enumerate(means)
    ]
    return StudyResults("s", Metric("accuracy"), rows, rows[-1].name, costs=())


def test_what_rises_and_falls_is_no_power_of_the_rank() -> None:
    """Its line is level, so the exponent alone would pass."""
    hump = found(Quantity.EXPONENT, measured([1, 4, 9, 9, 4, 1]), -0.1, 0.1, measurement="stable_rank")
    assert hump.intervals[""].value == pytest.approx(0, abs=0.05)
    assert hump.verdict is ClaimVerdict.UNDECIDED
    assert hump.note.startswith("It does not grow as a power of r: the means leave the line by more than the seeds")
    assert "from r = 2 to 4 the exponent is 2" in hump.note or "from r = 32 to 64 the exponent is -2" in hump.note
    refuted = found(Quantity.EXPONENT, measured([1, 4, 9, 9, 4, 1]), 1, 2, measurement="stable_rank")
    assert (refuted.verdict, refuted.note[:30]) == (ClaimVerdict.FAIL, "It does not grow as a power of")


def test_a_bend_inside_the_range_and_noise_leave_a_verdict() -> None:
    exponents = np.cumsum([0, 0.24, 0.25, 0.26, 0.27, 0.28])
    bent = measured(list(2.0**exponents), noise=1e-4)
    assert found(Quantity.EXPONENT, bent, 0.23, 0.30, measurement="stable_rank").verdict is ClaimVerdict.PASS
    passed = [
        found(
            Quantity.EXPONENT, measured([r**0.26 for r in (2, 4, 8, 16)], 3, 0.03, key), 0, 1, measurement="stable_rank"
        )
        for key in range(40)
    ]
    assert sum(each.verdict is ClaimVerdict.PASS for each in passed) >= 38
    wrong = found(Quantity.EXPONENT, measured([r**0.8 for r in (2, 4, 8, 16)]), 0.23, 0.3, measurement="stable_rank")
    assert (wrong.verdict, wrong.note) == (ClaimVerdict.FAIL, "")


def test_a_lack_of_fit_is_found_with_its_error_rate() -> None:
    random = np.random.default_rng(0)
    x = np.array([2.0, 4, 8, 16, 32])
    p_values = []
    for _ in range(500):
        runs = x**0.3 * np.exp(random.normal(0, 0.02, (4, 5)) + random.normal(0, 0.2, (4, 1)))
        without_one = np.array([np.delete(runs, seed, 0).mean(0) for seed in range(4)])
        p_values.append(lack_of_fit(x, runs.mean(0), without_one))
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.08
    assert neighboring_exponents(np.array([4.0, 1, 2]), np.array([8.0, 1, 2])) == [
        (1, 2, pytest.approx(1)),
        (2, 4, pytest.approx(2)),
    ]


def test_a_matrix_of_rank_one_has_the_stable_rank_one_and_says_nothing() -> None:
    study = measured([1.0, 1.2, 1.44])
    rows = [replace(each, rank=rank) for each, rank in zip(study.configurations, (1.0, 2.0, 4.0), strict=True)]
    finding = found(Quantity.EXPONENT, replace(study, configurations=rows), 0, 1, measurement="stable_rank")
    assert finding.intervals[""].value == pytest.approx(math.log2(1.2), abs=0.02)
    assert finding.note == "r = 1 is left out: stable_rank of a matrix of rank 1 is 1, whatever was trained."
    few = found(
        Quantity.EXPONENT, replace(study, configurations=rows[:2], reference="r = 2"), 0, 1, measurement="stable_rank"
    )
    assert (few.verdict, few.intervals) == (ClaimVerdict.UNDECIDED, {})
    assert few.note.endswith("Fewer than two ranks are left, so that there is no exponent.")


def test_best_rates_that_rise_and_fall_are_no_power_of_the_rank() -> None:
    ranks = {f"r = {r}": float(r) for r in (1, 2, 4, 8, 16)}
    optima = dict(zip(ranks, [1e-3, 2e-3, 4e-3, 2e-3, 1e-3], strict=True))
    finding = found(Quantity.LEARNING_RATE_EXPONENT, study_of_rates(optima, ranks), -0.25, 0.25)
    assert finding.intervals[""].value == pytest.approx(0, abs=0.01)
    assert (finding.verdict, finding.note[:32]) == (ClaimVerdict.UNDECIDED, "It does not grow as a power of r")


def test_intervals_of_rates_say_what_they_do_not_count() -> None:
    ranks = {"r = 1": 1.0, "r = 4": 4.0}
    study = study_of_rates({"full": 1e-4 * 2, "r = 1": 1e-3, "r = 4": 4e-3}, ranks)
    said = "not the error of the interpolation between rates, which were tried in steps of a factor of 2."
    assert found(Quantity.LEARNING_RATE_RATIO, study, 5, 20).note.endswith(said)
    assert found(Quantity.LEARNING_RATE_EXPONENT, study, -2, 2).note.endswith(said)


def test_runs_that_failed_decide_nothing_in_favor_of_what_is_left() -> None:
    study = rank_study({64: 0.0, 8: 0.02}, seeds=5, examples=4000)
    first, second = study.configurations
    failing = replace(study, configurations=[first, replace(second, failed_seeds=(8, 9))])
    assert found(Quantity.DIFFERENCE, study, 0, math.inf).verdict is ClaimVerdict.PASS
    kept = found(Quantity.DIFFERENCE, failing, 0, math.inf)
    assert kept.verdict is ClaimVerdict.UNDECIDED
    assert kept.note == "Runs are missing: 2 of 7 runs of r = 8 failed or have no result."
    inflated = replace(study, configurations=[replace(first, failed_seeds=(9,)), second])
    assert found(Quantity.DIFFERENCE, inflated, 0, math.inf).verdict is ClaimVerdict.PASS  # although r = 64 had luck
    assert found(Quantity.DIFFERENCE, inflated, -math.inf, 3).verdict is ClaimVerdict.UNDECIDED
    powers = measured([2.0**0.25, 4**0.25, 8**0.25])
    rows = [replace(powers.configurations[0], failed_seeds=(9,)), *powers.configurations[1:]]
    unsure = found(Quantity.EXPONENT, replace(powers, configurations=rows), 0, 1, measurement="stable_rank")
    assert unsure.verdict is ClaimVerdict.UNDECIDED
    assert unsure.note == "Nothing is decided: 1 of 4 runs of r = 2 failed or have no result."


def test_a_configuration_without_runs_is_named_and_the_others_are_shown() -> None:
    rows = [
        ConfigurationResults("a", {}, {s: 0.9 + 0.001 * s for s in range(3)}),
        ConfigurationResults("b", {}, {}),
        ConfigurationResults("d", {}, {s: 0.91 + 0.0015 * s for s in range(3)}),
    ]
    study = StudyResults("s", Metric("accuracy"), rows, "a", claims=[Claim("tie", "x", Quantity.DIFFERENCE, -9, 9)])
    row = claim_rows(judge_claims(study), study.metric)[0]
    assert row.found[0] == "b: -"
    assert row.found[1].startswith("d: 1.05 (95 % interval")
    assert (row.verdict, row.seeds) == ("UNDECIDED", 3)
    assert row.note == "Nothing to compare of b: no finished run with a seed of a."
    full = with_curves("full", [4.0, 2.0, 1.0], [3.0, 3.4, 3.8])
    some = [full, with_curves("lora", [4.0, 3.0, 1.5], [3.0, 3.1, 3.2]), ConfigurationResults("none", {}, {})]
    study = StudyResults("s", Metric("loss", higher_is_better=False, scale=Scale.PLAIN), some, "full")
    finding = found(Quantity.DIFFERENCE_AT_EQUAL_LOSS, study, -1, 0, measurement="other")
    assert finding.seeds == 1
    assert finding.note == "Nothing to compare of none: no finished run with a seed of full."


def test_all_differences_must_be_inside_and_any_may_refute() -> None:
    study = rank_study({64: 0.0, 32: 0.0, 8: 0.0}, seeds=5, examples=4000, spread=0.0)
    tie = found(Quantity.DIFFERENCE, study, -2, 2)
    assert tie.verdict is ClaimVerdict.PASS
    assert tie.intervals.keys() == {"r = 32", "r = 8"}
    assert found(Quantity.DIFFERENCE, study, -0.01, 0.01).verdict is ClaimVerdict.UNDECIDED
    apart = rank_study({64: 0.0, 32: 0.0, 8: -0.05}, seeds=5, examples=4000)
    refuted = found(Quantity.DIFFERENCE, apart, -2, 2)
    assert refuted.verdict is ClaimVerdict.FAIL
    expected = 100 * np.mean(
        [apart.configuration("r = 8").values[s] - apart.configuration("r = 64").values[s] for s in range(5)]
    )
    assert refuted.intervals["r = 8"].value == pytest.approx(expected)
    better = found(Quantity.DIFFERENCE, apart, 0, math.inf, configurations=("r = 64",), against="r = 8")
    assert better.verdict is ClaimVerdict.PASS


def test_chance_refutes_a_true_claim_about_many_configurations_rarely() -> None:
    """True differences lie on the end of the claimed range; each of ten may refute with its share of 5 % only."""
    random = np.random.default_rng(0)
    refuted = 0
    for _ in range(300):
        values = [{seed: float(value) for seed, value in enumerate(random.normal(0.9, 0.01, 4))} for _ in range(11)]
        rows = [ConfigurationResults(str(place), {}, each) for place, each in enumerate(values)]
        study = StudyResults("s", Metric("accuracy"), rows, "0")
        refuted += found(Quantity.DIFFERENCE, study, 0, 100).verdict is ClaimVerdict.FAIL
    assert refuted / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_an_interval_outside_that_refutes_nothing_is_explained() -> None:
    reference = ConfigurationResults("reference", {}, dict.fromkeys(range(4), 0.9))
    near = {f"c{place}": [0.901, 0.899, 0.9005, 0.8995] for place in range(4)}
    rows = [ConfigurationResults(name, {}, dict(enumerate(values))) for name, values in near.items()]
    far = ConfigurationResults("far", {}, dict(enumerate([0.87, 0.89, 0.865, 0.885])))
    study = StudyResults("s", Metric("accuracy"), [reference, far, *rows], "reference")
    finding = found(Quantity.DIFFERENCE, study, -0.3, 5)
    assert finding.intervals["far"].high < -0.3
    assert finding.verdict is ClaimVerdict.UNDECIDED
    assert finding.note.startswith("The interval of far alone lies outside the claimed range, but not with its share")
    alone = found(Quantity.DIFFERENCE, study, -0.3, 5, configurations=("far",))
    assert (alone.verdict, alone.note) == (ClaimVerdict.FAIL, "")


def test_one_seed_decides_nothing() -> None:
    study = rank_study({64: 0.0, 8: -0.2}, seeds=1, examples=500)
    assert found(Quantity.DIFFERENCE, study, -1, 1).verdict is ClaimVerdict.UNDECIDED


def with_curves(name: str, losses: list[float], others: list[float]) -> ConfigurationResults:
    steps = np.arange(1.0, len(losses) + 1)
    curves = {"val/loss": {0: np.stack([steps, losses])}, "other": {0: np.stack([steps, others])}}
    return ConfigurationResults(name, {}, {0: 1.0}, curves=curves)


def test_a_measurement_at_equal_loss_is_interpolated() -> None:
    full = with_curves("full", [4.0, 2.0, 1.0], [3.0, 3.4, 3.8])
    lora = with_curves("lora", [4.0, 3.0, 1.5], [3.0, 3.1, 3.2])
    # Both reach 1.5: LoRA at its last validation, full fine-tuning halfway between its last two.
    found, left_out = differences_at_equal_loss(lora, full, "other")
    assert found == [pytest.approx(3.2 - 3.6)]
    assert left_out == 0
    assert differences_at_equal_loss(lora, full, "unknown") == ([], 1)


def test_a_loss_that_was_lower_from_the_start_cannot_be_compared() -> None:
    full = with_curves("full", [1.2, 1.0, 0.9], [3.0, 3.4, 3.8])
    lora = with_curves("lora", [2.0, 1.7, 1.5], [3.0, 3.1, 3.2])
    assert differences_at_equal_loss(lora, full, "other") == ([], 1)
    study = StudyResults("s", Metric("loss", higher_is_better=False, scale=Scale.PLAIN), [full, lora], "full")
    finding = found(Quantity.DIFFERENCE_AT_EQUAL_LOSS, study, -1, 0, measurement="other")
    assert (finding.verdict, finding.seeds) == (ClaimVerdict.UNDECIDED, 0)
    assert finding.note.startswith("Pairs of runs that are left out: 1.")


def test_curves_without_common_or_finite_points_are_left_out() -> None:
    full, lora = (with_curves(name, [4.0, 2.0, 1.0], [3.0, 3.4, 3.8]) for name in ("full", "lora"))
    elsewhere = replace(lora, curves={**lora.curves, "other": {0: np.array([[7.0, 8.0], [1.0, 2.0]])}})
    assert differences_at_equal_loss(elsewhere, full, "other") == ([], 1)
    broken = with_curves("lora", [4.0, 2.0, math.nan], [3.0, 3.1, 3.2])
    for pair, sign in (((broken, full), 1), ((full, broken), -1)):  # both reach 2.0 at their second validation
        assert differences_at_equal_loss(*pair, "other") == ([pytest.approx(sign * (3.1 - 3.4))], 0)


def test_claims_on_perplexity_are_in_percent() -> None:
    rows = [
        ConfigurationResults("a", {}, {s: math.log(20) for s in range(3)}),
        ConfigurationResults("b", {}, {s: math.log(20.2) + 1e-5 * s for s in range(3)}),
    ]
    metric = Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG)
    study = StudyResults("s", metric, rows, "a")
    finding = found(Quantity.DIFFERENCE, study, -2, 0)
    assert finding.intervals["b"].value == pytest.approx(-1.0, abs=0.01)
    assert finding.verdict is ClaimVerdict.PASS
    assert found(Quantity.DIFFERENCE, study, -0.5, 0).verdict is ClaimVerdict.FAIL
    assert found(Quantity.DIFFERENCE, study, -150, 150).verdict is ClaimVerdict.PASS  # no perplexity is 100 % better


def test_one_refuted_difference_is_enough_beside_one_that_is_unknown() -> None:
    rows = [
        ConfigurationResults("a", {}, {s: 0.9 + 0.001 * s for s in range(4)}),
        ConfigurationResults("b", {}, {s: 0.5 + 0.002 * s for s in range(4)}),
        ConfigurationResults("c", {}, {0: 0.9}),
    ]
    study = StudyResults("s", Metric("accuracy"), rows, "a")
    assert found(Quantity.DIFFERENCE, study, -1, 1).verdict is ClaimVerdict.FAIL


def test_an_analysis_has_the_findings() -> None:
    claim = Claim("tie", "someone", Quantity.DIFFERENCE, -2, 2)
    study = replace(rank_study({64: 0.0, 8: 0.0}, seeds=3, examples=100), claims=[claim])
    assert [each.claim for each in analyze_study(study).claims] == [claim]


def test_seeds_that_all_give_the_same_exponent_prove_nothing() -> None:
    study = rank_study(seeds=3, examples=50)
    rows = [
        replace(each, measurements={"stable_rank": dict.fromkeys(range(3), (each.rank or 0) ** 0.35)})
        for each in study.configurations
    ]
    finding = found(
        Quantity.EXPONENT, replace(study, configurations=rows, costs=()), 0.3, 0.4, measurement="stable_rank"
    )
    assert finding.intervals[""].value == pytest.approx(0.35)
    assert finding.verdict is ClaimVerdict.UNDECIDED
    assert finding.note == "All seeds give the same value, so that there is no interval."
