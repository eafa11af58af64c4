"""Verdicts, recommendations and sentences of made-up studies."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lora_lightning.errors import ConfigurationError
from lora_lightning.reports.verdict_rows import chance_sentence
from lora_lightning.statistics.analysis import analyze_study, as_json, better_than_recommended_note, weak_reference_note
from lora_lightning.statistics.claims import Claim, Quantity
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.power import planned_power
from lora_lightning.statistics.recommendation import Recommendation, recommend_winner
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults
from lora_lightning.statistics.verdicts import ClaimVerdict, Verdict, claim_verdict
from tests.statistics.studies import EFFECTS, rank_study


def seeds_only(values: dict[str, list[float]], metric: Metric | None = None, **others: object) -> StudyResults:
    configurations = [
        ConfigurationResults(name, {}, dict(enumerate(row)), measurements={"cost": {0: float(place)}})
        for place, row in enumerate(values.values())
        for name in [list(values)[place]]
    ]
    arguments = {"reference": list(values)[-1], "costs": ("cost",)} | others
    return StudyResults("s", metric or Metric("accuracy"), configurations, **arguments)  # type: ignore[arg-type]


def test_smallest_sufficient_rank_and_its_sentence() -> None:
    found = analyze_study(rank_study())
    assert found.smallest_sufficient == found.recommendation.name == "r = 4"
    assert found.recommendation.answer == (
        "r = 4 is enough: at least as good as r = 64 minus 0.5 points (difference -0.15 points, 95 % interval -0.49 to "
        "0.20, 5 seeds, 1,500 test examples). It is the cheapest configuration with that proof: 147,456 trainable "
        "parameters, 6.25 % of r = 64's 2,359,296."
    )
    assert [each.verdict for each in found.comparisons] == [Verdict.NOT_WORSE] * 4 + [Verdict.WORSE]
    assert "r = 2" in found.pareto["trainable_parameters"]
    assert all("r = 2" in (pair.first, pair.second) for pair in found.pairs if pair.told_apart)
    assert len(found.pairs) == 15


def test_the_sequence_stops_at_the_first_failure() -> None:
    study = rank_study({64: 0.0, 32: -0.02, 16: 0.0, 8: -0.2})
    found = analyze_study(study)
    assert found.smallest_sufficient is None
    verdicts = {each.name: each.verdict for each in found.comparisons}
    assert verdicts == {"r = 32": Verdict.WORSE, "r = 16": Verdict.NOT_TESTED, "r = 8": Verdict.WORSE}
    assert found.recommendation.name == "r = 64"
    assert found.recommendation.answer.startswith("r = 64 is recommended: no other configuration is proven")
    without_order = analyze_study(replace(study, sequence=()))
    assert without_order.recommendation.name == "r = 16"
    assert {each.test for each in without_order.comparisons} == {"Holm"}


def test_an_interval_above_the_margin_that_is_undecided_says_why() -> None:
    """Holm's correction for five comparisons decides against one that passes alone."""
    study = replace(rank_study(examples=600), sequence=())
    sentences = {found.name: found.sentence for found in analyze_study(study).comparisons}
    said = "alone it would be proven, but not with Holm's correction for all comparisons; missing: "
    assert said in sentences["r = 32"]
    assert "is undecided" in sentences["r = 16"]
    assert said not in sentences["r = 16"]


def test_undecided_says_what_is_missing() -> None:
    found = analyze_study(rank_study(EFFECTS, spread=0.01)).comparisons[0]
    assert found.verdict is Verdict.UNDECIDED
    assert found.missing.endswith("more seeds, if both are equally good")
    assert f"missing: {found.missing}." in found.sentence


def test_what_is_missing_names_what_is_assumed() -> None:
    """Beyond the margin but undecided; surely worse, but by how much; and hopeless."""
    beyond = analyze_study(seeds_only({"small": [0.89, 0.9, 0.891], "large": [0.9, 0.901, 0.905]})).comparisons[0]
    assert beyond.verdict is Verdict.UNDECIDED
    assert beyond.missing.startswith(
        "nothing of this kind if the observed difference is the true one, which is beyond the margin; "
    )
    assert beyond.missing.endswith(" more seeds if both are equally good")
    worse = analyze_study(seeds_only({"small": [0.8945, 0.8985, 0.8965], "large": [0.9] * 3})).comparisons[0]
    assert worse.verdict is Verdict.UNDECIDED
    assert worse.missing.endswith("more seeds, if the true difference is the observed -0.35 points")
    refuted = analyze_study(seeds_only({"small": [0.8915, 0.8945, 0.893], "large": [0.9] * 3})).comparisons[0]
    assert "so more data would rather refute it" in refuted.missing


def failing(study: StudyResults, name: str, failed: int = 3) -> StudyResults:
    seeds = tuple(range(100, 100 + failed))
    rows = [replace(each, failed_seeds=seeds) if each.name == name else each for each in study.configurations]
    return replace(study, configurations=rows)


@pytest.mark.parametrize("sequence", [(), ("r = 8",)])
def test_nothing_is_proven_in_favor_of_a_configuration_whose_runs_failed(sequence: tuple[str, ...]) -> None:
    """Three of its six runs are gone, perhaps because they diverged; the others are as good as the reference's."""
    study = replace(rank_study({64: 0.0, 8: 0.01}, seeds=3, examples=4000), sequence=sequence)
    assert analyze_study(study).recommendation.name == "r = 8"
    found = analyze_study(failing(study, "r = 8"))
    assert found.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert found.comparisons[0].sentence.startswith(
        "r = 8 against r = 64: not enough evidence, 3 of 6 runs of r = 8 failed or have no result (difference "
    )
    assert (
        "missing: the results of the runs that failed, or settings with which none fails."
        in found.comparisons[0].sentence
    )
    assert (found.recommendation.name, found.recommendation.proven) == ("r = 64", False)
    assert not found.pairs[0].told_apart
    worse = failing(rank_study({64: 0.0, 8: -0.1}, seeds=3, examples=4000), "r = 8")
    assert analyze_study(worse).comparisons[0].verdict is Verdict.WORSE  # even the runs that are left


def test_a_reference_whose_runs_failed_is_no_recommendation() -> None:
    study = failing(rank_study({64: 0.0, 8: -0.1, 2: -0.2}, seeds=3, examples=4000), "r = 64", 1)
    found = analyze_study(study)
    assert {each.verdict for each in found.comparisons} == {Verdict.NOT_ENOUGH_EVIDENCE}
    assert found.recommendation.name is None
    assert found.recommendation.answer.startswith(
        "Nothing is recommended: 1 of 4 runs of r = 64 failed or have no result, "
    )
    dearer = failing(replace(rank_study({8: 0.0, 64: 0.01}, seeds=3, examples=4000), sequence=()), "r = 8")
    assert analyze_study(dearer).recommendation.name is None
    assert recommend_winner(dearer, analyze_study(dearer)).name in {None, "r = 64"}
    proven = analyze_study(failing(rank_study({64: 0.0, 8: 0.02}, seeds=3, examples=4000), "r = 64"))
    assert proven.recommendation.name == "r = 8"  # as good as the runs of the reference that did not fail


def test_identical_outcomes_of_runs_that_did_not_fail_are_no_proof() -> None:
    found = analyze_study(failing(equal_hits(1500), "r = 8"))
    assert found.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    claim = Claim("quote", "source", Quantity.DIFFERENCE, low=-0.5, configurations=("r = 8",))
    study = failing(equal_hits(1500, claims=[claim], full_fine_tuning="r = 64"), "r = 8")
    assert analyze_study(study).claims[0].verdict is ClaimVerdict.UNDECIDED
    assert analyze_study(study).against_full[0].verdict is ClaimVerdict.UNDECIDED


def test_one_seed_is_not_enough_evidence() -> None:
    found = analyze_study(rank_study(seeds=1))
    assert {each.verdict for each in found.comparisons} == {Verdict.NOT_ENOUGH_EVIDENCE}
    assert found.recommendation.name == "r = 64"
    assert not found.recommendation.proven
    assert "not enough evidence, one seed shows no variation" in found.recommendation.answer
    assert len(found.indistinguishable) == len(found.pairs)


def test_identical_outcomes() -> None:
    study = rank_study({64: 0.0, 8: 0.0})
    same = replace(study.configurations[1], values=study.configurations[0].values)
    same = replace(same, outcomes=study.configurations[0].outcomes)
    found = analyze_study(replace(study, configurations=[study.configurations[0], same]))
    assert found.comparisons[0].verdict is Verdict.IDENTICAL
    assert (
        "identical on this test set (difference 0.00 points, 95 % interval 0.00 to 0.00" in found.recommendation.answer
    )
    assert found.recommendation.name == "r = 8"


def equal_hits(examples: int, **change: object) -> StudyResults:
    study = rank_study({64: 0.0, 8: 0.0}, examples=examples)
    same = replace(study.configurations[0], name="r = 8")
    return replace(study, configurations=[study.configurations[0], same], **change)


def test_identical_is_a_proof_on_many_examples_only() -> None:
    """With a loss of 0.5 points, 100 examples show nothing of it in 61 % of studies, 600 in 5 %."""
    found = analyze_study(equal_hits(100))
    assert found.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert found.comparisons[0].p_value == pytest.approx(0.995**100)
    assert "not enough evidence, identical on this test set (difference 0.00" in found.comparisons[0].sentence
    assert "missing: 500 more test examples, if their outcomes are equal, too." in found.comparisons[0].sentence
    assert found.recommendation.name == "r = 64"
    assert analyze_study(equal_hits(597)).comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert analyze_study(equal_hits(598)).comparisons[0].verdict is Verdict.IDENTICAL


def test_identical_without_a_known_limit_or_examples_is_no_proof() -> None:
    study = equal_hits(1500)
    plain = analyze_study(replace(study, metric=Metric("loss", 0.1, higher_is_better=False, scale=Scale.PLAIN)))
    assert plain.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "one example may change loss by any amount" in plain.comparisons[0].missing
    perfect = [
        replace(each, values={0: 1.0, 1: 1.0}, outcomes=dict.fromkeys((0, 1), np.ones(1500)))
        for each in study.configurations
    ]
    for name, verdict in (("auroc", Verdict.NOT_ENOUGH_EVIDENCE), ("accuracy", Verdict.IDENTICAL)):
        found = analyze_study(replace(study, configurations=perfect, metric=Metric(name)))
        assert found.comparisons[0].verdict is verdict
    by_seed = analyze_study(seeds_only({"small": [0.95, 0.95], "large": [0.95, 0.95]})).comparisons[0]
    assert by_seed.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "equal values of seeds" in by_seed.sentence


def test_identical_outcomes_of_few_examples_decide_no_claim() -> None:
    claim = Claim("quote", "source", Quantity.DIFFERENCE, low=-0.5, configurations=("r = 8",))
    verdicts = [
        analyze_study(equal_hits(examples, claims=[claim], full_fine_tuning="r = 64")) for examples in (90, 1500)
    ]
    assert [found.claims[0].verdict for found in verdicts] == [ClaimVerdict.UNDECIDED, ClaimVerdict.PASS]
    assert [found.against_full[0].verdict for found in verdicts] == [ClaimVerdict.UNDECIDED, ClaimVerdict.PASS]


def test_few_lost_hits_are_no_proof_and_more_examples_are_missing() -> None:
    """A t test takes the little variance that one change shows, and calls 800 examples enough."""
    hits = np.ones(800)
    lost = hits.copy()
    hits[0] = lost[0] = lost[1] = 0
    tables = {"r = 64": hits, "r = 8": lost}
    rows = [
        ConfigurationResults(name, {}, dict.fromkeys(range(3), float(each.mean())), dict.fromkeys(range(3), each))
        for name, each in tables.items()
    ]
    found = analyze_study(StudyResults("s", Metric("accuracy"), rows, "r = 64")).comparisons[0]
    t_tests = replace(found.difference, score_test=None)
    assert t_tests.p_value_above(-0.005) < 0.01
    assert found.p_value > 0.05
    assert found.verdict is Verdict.UNDECIDED
    assert found.difference.interval.low < -0.005
    more = re.fullmatch(r"([\d,]+) more test examples, if .*", found.missing)
    assert more
    assert 0 < int(more[1].replace(",", "")) < 1000


def test_what_a_sequence_leaves_out_is_tested_only_if_all_of_it_passes() -> None:
    """Otherwise the sequence and Holm's correction would have 5 % each, and both together up to 10 %."""
    study = rank_study({64: 0.0, 32: -0.02, 16: 0.0, 8: 0.0})
    found = {each.name: each for each in analyze_study(replace(study, sequence=("r = 32",))).comparisons}
    assert found["r = 32"].verdict is Verdict.WORSE
    assert found["r = 16"].verdict is found["r = 8"].verdict is Verdict.NOT_TESTED
    assert "r = 16 is not tested, because a configuration of the fixed sequence is not" in found["r = 16"].sentence
    passed = {each.name: each for each in analyze_study(replace(study, sequence=("r = 16",))).comparisons}
    assert passed["r = 8"].verdict is Verdict.NOT_WORSE
    assert passed["r = 8"].test == "Holm"


def test_missing_seeds_count_holms_correction() -> None:
    """What is missing is enough if its p value is rejected at 5 % divided by all that are not rejected."""
    noise = np.random.default_rng(3).normal(0, 0.006, (7, 5))
    rows = {f"c{place}": list(0.9 + row - row.mean()) for place, row in enumerate(noise)}
    found = analyze_study(seeds_only({**rows, "large": [0.9] * 5})).comparisons
    waiting = [each for each in found if each.verdict is Verdict.UNDECIDED]
    assert len(waiting) > 2
    for each in waiting:
        assert each.difference.components is not None
        seeds = 5 + int(each.missing.split()[0])
        assert seeds < 100  # more would be rounded up
        power = [
            planned_power(each.difference.components, 0.005, n, 0, 0.05 / len(waiting)) for n in (seeds - 1, seeds)
        ]
        assert power[0] < 0.8 <= power[1]


def test_without_a_result_of_the_reference_nothing_is_recommended() -> None:
    study = seeds_only({"small": [0.95, 0.948], "other": [0.95, 0.949], "large": []})
    found = analyze_study(study)
    assert found.recommendation.name is None
    assert "the reference large has no finished and tested run" in found.recommendation.answer
    assert recommend_winner(study, found).name is None
    assert chance_sentence(found).startswith("None of 1 pair of configurations with an interval can be told apart")


def test_unpaired_seeds_are_named_and_not_compared() -> None:
    study = rank_study({64: 0.0, 8: 0.0})
    extra = replace(study.configurations[1], values={**study.configurations[1].values, 99: 0.1})
    found = analyze_study(replace(study, configurations=[study.configurations[0], extra]))
    assert found.comparisons[0].unpaired_seeds == (99,)
    assert found.comparisons[0].difference.seeds == 5


def test_a_configuration_without_runs_stops_the_sequence() -> None:
    study = rank_study()
    empty = replace(study.configurations[1], values={}, outcomes={})
    rows = [study.configurations[0], empty, *study.configurations[2:]]
    found = analyze_study(replace(study, configurations=rows))
    assert found.comparisons[0].verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert found.smallest_sufficient is None
    json.dumps(as_json(found), allow_nan=False)


def test_lower_is_better_flips_the_sign_and_percent_are_of_the_perplexity() -> None:
    perplexity = {"small": [20.3, 20.1, 20.25], "large": [20.0, 19.8, 19.97]}
    logs = {name: [math.log(value) for value in row] for name, row in perplexity.items()}
    metric = Metric("log_perplexity", margin=1.0, higher_is_better=False, scale=Scale.LOG)
    found = analyze_study(seeds_only(logs, metric)).comparisons[0]
    assert found.verdict is Verdict.WORSE
    assert "difference -1.5 %" in found.sentence
    test = stats.ttest_rel(logs["small"], logs["large"])
    low, high = test.confidence_interval(0.95)
    assert found.difference.interval.low == pytest.approx(-high)
    assert found.difference.interval.high == pytest.approx(-low)
    assert metric.shown_difference(-metric.stored_margin) == pytest.approx(-1.0)


def test_a_cheaper_reference_is_kept() -> None:
    rows = {"other": [0.91, 0.922, 0.9], "dear": [0.9, 0.91, 0.89]}
    found = analyze_study(seeds_only(rows, reference="other"))
    assert found.recommendation.name == "other"
    found = analyze_study(seeds_only({"cheap": [0.9, 0.91, 0.9], "dear": [0.93, 0.95, 0.92]}, reference="cheap"))
    assert found.comparisons[0].verdict is Verdict.NOT_WORSE
    assert found.recommendation.name == "cheap"
    assert "no cheaper configuration is proven" in found.recommendation.answer


def test_without_costs_the_order_decides_or_nothing() -> None:
    study = replace(rank_study(), costs=())
    assert analyze_study(study).recommendation.name == "r = 4"
    unordered = analyze_study(replace(study, sequence=())).recommendation
    assert unordered.name is None
    assert "costs less (no column is a cost; name one with --cost), so no configuration is" in unordered.answer


@pytest.mark.parametrize("without", ["r = 4", "r = 64"])  # a proven configuration, and the reference
def test_a_cost_that_was_not_measured_for_all_decides_nothing(without: str) -> None:
    study = rank_study()
    cost = study.costs[0]
    configurations = [
        replace(each, measurements={name: found for name, found in each.measurements.items() if name != cost})
        if each.name == without
        else each
        for each in study.configurations
    ]
    study = replace(study, configurations=configurations)
    assert analyze_study(study).recommendation.name == "r = 4"  # the order says which costs less
    found = analyze_study(replace(study, sequence=())).recommendation
    assert found.name is None
    assert f"costs less ({cost.replace('_', ' ')} is missing for {without})" in found.answer


def test_against_full_fine_tuning() -> None:
    rows = {"lora": [0.95, 0.96, 0.955], "bad": [0.8, 0.81, 0.815], "full": [0.96, 0.97, 0.966]}
    found = analyze_study(seeds_only(rows, full_fine_tuning="full")).against_full
    assert [(each.name, each.verdict) for each in found] == [("lora", ClaimVerdict.PASS), ("bad", ClaimVerdict.FAIL)]
    difference = np.array(rows["lora"]) - rows["full"]
    assert found[0].percent.value == pytest.approx(100 * difference.mean() / np.mean(rows["full"]))
    unknown = analyze_study(seeds_only({**rows, "full": []}, full_fine_tuning="full")).against_full[0]
    assert (unknown.verdict, str(unknown.percent)) == (ClaimVerdict.UNDECIDED, "unknown")


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [((0.1, 0.2), "PASS"), ((-0.3, 0.2), "UNDECIDED"), ((0.3, 0.4), "FAIL"), ((math.nan, math.nan), "UNDECIDED")],
)
def test_claims(ends: tuple[float, float], verdict: str) -> None:
    assert claim_verdict(Interval(0.0, *ends), -0.25, 0.25) == verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "r = 7"}, "no configuration 'r = 7'"),
        ({"full_fine_tuning": "all"}, "no configuration 'all'"),
        ({"sequence": ("r = 64", "r = 8")}, "not the reference"),
        ({"sequence": ("r = 8", "r = 8")}, "once"),
        ({"metric": Metric("accuracy", margin=0.0)}, "above 0"),
        ({"metric": Metric("accuracy", margin=math.nan)}, "above 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        analyze_study(replace(rank_study(), **change))  # type: ignore[arg-type]


def test_outcomes_that_do_not_fit_are_refused() -> None:
    study = rank_study({64: 0.0, 8: 0.0}, seeds=2)
    first, second = study.configurations
    shorter = {seed: row[:100] for seed, row in second.outcomes.items()}
    means = {seed: float(row.mean()) for seed, row in shorter.items()}
    for changed, message in (
        (replace(second, outcomes=shorter, values=means), "100 test examples and 'r = 64' of 1,500"),
        (replace(second, outcomes=shorter, values={0: 0.1, 1: 0.1}), "mean of its outcomes"),
        (replace(second, values={0: math.nan, 1: 0.9}), "with seed 0 is nan"),
        (replace(second, name="r = 64"), "occurs twice"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            analyze_study(replace(study, configurations=[first, changed], sequence=()))


def test_the_winner_of_a_search_must_be_better_or_cheaper() -> None:
    def answer(effects: dict[int, float]) -> Recommendation:
        results = rank_study(effects, seeds=5)
        return recommend_winner(results, analyze_study(results))

    better = answer({8: 0.0, 64: 0.02})
    assert (better.name, better.proven) == ("r = 64", True)
    assert "r = 64 is better than r = 8 (difference" in better.answer
    same = answer({8: 0.0, 64: 0.0})
    assert (same.name, same.proven) == ("r = 8", False)
    assert "r = 8 is recommended: the winner of the search, r = 64, is not proven better" in same.answer
    assert answer({8: 0.0, 64: -0.03}).name == "r = 8"
    assert answer({64: 0.0, 8: 0.0}).name == "r = 8"  # cheaper, and not worse
    assert answer({64: 0.0}).name == "r = 64"


def test_a_reference_that_is_worse_than_what_costs_less_is_named() -> None:
    study = rank_study({64: -0.04, 8: 0.0, 2: -0.001}, seeds=5)
    note = weak_reference_note(study, analyze_study(study))
    assert note.startswith("r = 8 is better than the reference r = 64, which costs more (difference 4.")
    assert weak_reference_note(rank_study(), analyze_study(rank_study())) == ""
    dearer = replace(study, reference="r = 8", sequence=())
    assert weak_reference_note(dearer, analyze_study(dearer)) == ""
    assert weak_reference_note(replace(study, costs=()), analyze_study(replace(study, costs=()))) == ""


def test_a_weak_reference_is_found_beside_many_others() -> None:
    """Over all 21 pairs of seven configurations, the difference would be no more than chance."""
    random = np.random.default_rng(1)
    good = list(0.913 + random.normal(0, 0.0008, 4))
    others = {f"c{place}": list(0.911 + random.normal(0, 0.008, 4)) for place in range(5)}
    study = seeds_only({"good": good, **others, "full": list(0.91 + random.normal(0, 0.0003, 4))})
    analysis = analyze_study(study)
    assert not [pair for pair in analysis.pairs if pair.told_apart]
    assert "good is better than the reference full, which costs more" in weak_reference_note(study, analysis)


def test_what_is_better_than_the_recommended_one_is_named() -> None:
    study = rank_study({64: 0.0, 32: 0.05, 8: 0.01}, seeds=5)
    analysis = analyze_study(study)
    assert analysis.recommendation.name == "r = 8"
    note = better_than_recommended_note(study, analysis)
    assert note.startswith("r = 32 is better than the recommended r = 8 by more than chance (difference ")
    assert better_than_recommended_note(rank_study(), analyze_study(rank_study())) == ""
    backward = replace(study, configurations=study.configurations[::-1])
    assert better_than_recommended_note(backward, analyze_study(backward)) == note


def test_equal_outcomes_after_the_end_of_the_sequence_lack_nothing() -> None:
    study = rank_study({64: 0.0, 32: -0.02, 16: 0.0}, seeds=3, examples=2000)
    rows = {each.name: each for each in study.configurations}
    rows["r = 16"] = replace(rows["r = 16"], values=rows["r = 64"].values, outcomes=rows["r = 64"].outcomes)
    study = replace(study, configurations=list(rows.values()))
    for sequence in (study.sequence, ("r = 32",)):
        found = {each.name: each for each in analyze_study(replace(study, sequence=sequence)).comparisons}
        assert found["r = 32"].verdict is Verdict.WORSE
        assert found["r = 16"].difference.identical
        assert found["r = 16"].verdict is Verdict.NOT_TESTED
        assert found["r = 16"].missing == ""


def test_a_perfect_configuration_is_judged_alike_whatever_the_metric_is_called() -> None:
    hits = np.ones(300)
    missed = np.where(np.arange(300) == 0, 0.0, 1.0)

    def verdict(name: str, perfect_is_judged: bool) -> tuple[Verdict, float]:
        tables = {"a": missed, "b": hits} if perfect_is_judged else {"a": hits, "b": missed}
        rows = [
            ConfigurationResults(each, {}, dict.fromkeys(range(3), own.mean()), dict.fromkeys(range(3), own))
            for each, own in tables.items()
        ]
        (found,) = analyze_study(StudyResults("s", Metric(name), rows, "a", costs=())).comparisons
        return found.verdict, found.difference.interval.low

    for perfect_is_judged in (True, False):
        assert verdict("recall", perfect_is_judged) == verdict("accuracy", perfect_is_judged)
    assert verdict("recall", True)[0] is Verdict.UNDECIDED


def test_worse_by_the_one_sided_test_alone_names_its_bound() -> None:
    study = seeds_only({"lora": [0.8975, 0.9, 0.895], "full": [0.9075, 0.9075, 0.9075]})
    (found,) = analyze_study(study).comparisons
    assert found.verdict is Verdict.WORSE
    assert found.difference.interval.high > -0.005
    assert "95 % interval -1.62 to -0.38" in found.sentence
    bound = -100 * (0.01 - stats.t.ppf(0.95, 2) * 0.0025 / math.sqrt(3))
    assert found.sentence.endswith(f"; the one-sided test at 5 % decides, whose bound is {bound:.2f}.")
    assert bound < -0.5
