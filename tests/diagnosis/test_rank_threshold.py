"""Planted losses by rank and by precision: what is enough, what quantization costs, and what more rank buys back."""

import math
from dataclasses import replace

import pytest

from lora_lightning.diagnosis.costs import cost_table
from lora_lightning.diagnosis.rank_threshold import find_rank_threshold
from lora_lightning.diagnosis.report_tables import ranks_tables
from lora_lightning.diagnosis.sensitivity import SkipChoice
from lora_lightning.diagnosis.skip_proof import reason_not_to_train
from lora_lightning.diagnosis.specification import SkipProof
from lora_lightning.statistics.multiple_tests import holm
from lora_lightning.statistics.pairing import compare
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults
from lora_lightning.statistics.verdicts import Verdict
from tests.diagnosis import planted


def test_the_same_rank_is_enough_for_both_without_a_loss() -> None:
    found = find_rank_threshold(planted.diagnosis(), planted.results(accuracies=(0.80, 0.92, 0.92)))
    assert [each.precision for each in found.precisions] == ["float32", "NF4"]
    assert [each.smallest for each in found.precisions] == [4, 4]
    assert found.precisions[0].verdicts == {2: Verdict.WORSE, 4: Verdict.NOT_WORSE}
    assert found.precisions[0].means[8].value == pytest.approx(92, abs=1.5)
    assert [loss.rank for loss in found.losses] == [2, 4, 8]
    assert all(loss.verdict is Verdict.NOT_WORSE and not loss.told_from_zero for loss in found.losses)


def test_a_planted_loss_is_told_from_zero_and_more_rank_does_not_buy_it_back() -> None:
    results = planted.results(loss=0.06)
    found = find_rank_threshold(planted.diagnosis(), results)
    assert found.compared is not None
    assert found.compared.rank == 8
    assert found.compared.told_from_zero
    assert found.compared.verdict is Verdict.WORSE
    assert found.compared.difference.interval.value == pytest.approx(-0.06, abs=0.01)
    alone = [
        compare(results.configuration(f"NF4, r = {r}"), results.configuration(f"float32, r = {r}"), results.metric)
        for r in planted.RANKS
    ]
    assert found.compared.p_value == pytest.approx(alone[-1].p_value)  # chosen beforehand, so without a correction
    assert [loss.p_value for loss in found.losses] == pytest.approx(
        [*holm([each.p_value for each in alone[:-1]]), alone[-1].p_value]
    )
    bought = {loss.other_rank: loss for loss in found.bought_back}
    assert bought.keys() == {2, 4}
    assert all(loss.rank == 8 for loss in found.bought_back)
    assert bought[2].difference.interval.value == pytest.approx(0.92 - 0.06 - 0.90, abs=0.01)
    assert "NF4, r = 8 is worse than float32, r = 8 by more than 2 points" in found.compared.sentence


def test_a_perplexity_has_one_mean_on_a_page() -> None:
    """That of the logarithms, of which differences are, too."""
    metric = Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG)
    logs = dict(enumerate((2.0, 3.0, 3.5)))
    study = planted.results()
    rows = [replace(each, values=logs, outcomes={}) for each in study.configurations[:5]]
    rows += [replace(study.configurations[5], values={}, outcomes={})]
    study = replace(study, metric=metric, configurations=rows)
    full, quantized = find_rank_threshold(planted.diagnosis(), study).precisions
    assert full.means[8].value == pytest.approx(math.exp(8.5 / 3))
    assert full.means[8].low < full.means[8].value < full.means[8].high
    assert math.log(full.means[8].high) + math.log(full.means[8].low) == pytest.approx(2 * 8.5 / 3)
    row = cost_table(planted.diagnosis(), study, {}, {}).rows[2]
    assert (row.configuration, row.quality) == ("float32, r = 8", pytest.approx(full.means[8].value))
    assert math.isnan(quantized.means[8].value)  # no run


@pytest.mark.parametrize("loss", [0.006, 0.010, 0.014])
def test_the_compared_rank_is_decided_once(loss: float) -> None:
    """The table has the comparison of the verdict, chosen beforehand, and no other one of the same runs."""
    found = find_rank_threshold(planted.diagnosis(rank=4), planted.results(loss, (0.9, 0.92, 0.925)))
    assert [each.rank for each in found.losses] == [2, 4, 8]
    assert found.losses[1] == found.compared


def test_runs_that_are_missing_are_left_out() -> None:
    results = planted.results()
    empty = [
        replace(each, values={}, outcomes={}) if each.name == "NF4, r = 8" else each for each in results.configurations
    ]
    found = find_rank_threshold(planted.diagnosis(), replace(results, configurations=empty))
    assert found.compared is None
    assert [loss.rank for loss in found.losses] == [2, 4]
    assert found.precisions[1].smallest is None


def without_seeds(results: StudyResults, name: str, *gone: int, failed: bool = True) -> StudyResults:
    """Results without some runs of a configuration, which failed or are left."""

    def cut(each: ConfigurationResults) -> ConfigurationResults:
        values = {seed: value for seed, value in each.values.items() if seed not in gone}
        outcomes = {seed: value for seed, value in each.outcomes.items() if seed not in gone}
        return replace(each, values=values, outcomes=outcomes, failed_seeds=tuple(gone) if failed else ())

    own = [cut(each) if each.name == name else each for each in results.configurations]
    return replace(results, configurations=own)


def test_failed_runs_leave_a_loss_open_and_are_named() -> None:
    """The loss of 6 points is large; the float32 runs that are left may be the good ones, which p = 1 does not say."""
    diagnosis = planted.diagnosis(rank=4)
    results = without_seeds(planted.results(0.06), "float32, r = 4", 4)
    found = find_rank_threshold(diagnosis, results)
    loss = found.compared
    assert loss is not None
    failures = "1 of 5 runs of float32, r = 4 failed or have no result"
    assert math.isnan(loss.p_value)
    assert not loss.is_loss
    assert loss.test == (
        f"Whether the difference is more than chance is not judged: {failures}, and those that are left may be its "
        "good ones."
    )
    assert loss.why_no_loss == (
        f"The loss by quantization is not judged ({failures}), so it is not known whether there is anything to buy "
        "back."
    )
    assert "told from zero" not in f"{loss.test}{loss.why_no_loss}"
    assert reason_not_to_train(
        replace(diagnosis, proof=SkipProof(seeds=(0, 1))), SkipChoice(("a",), 1, 2, (), ()), loss
    ) == (loss.why_no_loss)
    alone = [
        compare(results.configuration(f"NF4, r = {r}"), results.configuration(f"float32, r = {r}"), results.metric)
        for r in (2, 8)
    ]
    others = [each.p_value for each in found.losses if each.rank != 4]
    assert others == pytest.approx(holm([each.p_value for each in alone]))
    own = find_rank_threshold(diagnosis, without_seeds(planted.results(0.06), "NF4, r = 4", 4)).compared
    assert own is not None
    assert own.is_loss  # failed runs of NF4 hide no loss of those that are left
    better = find_rank_threshold(diagnosis, without_seeds(planted.results(-0.06), "NF4, r = 4", 4)).compared
    assert better is not None
    assert better.test.startswith("Whether the difference is more than chance is not judged: 1 of 5 runs of NF4, r = 4")


def test_what_failed_at_another_rank_is_no_part_of_holm_s_correction() -> None:
    diagnosis, whole = planted.diagnosis(rank=8), planted.results(0.06)
    found = find_rank_threshold(diagnosis, without_seeds(whole, "float32, r = 2", 4))
    alone = compare(whole.configuration("NF4, r = 4"), whole.configuration("float32, r = 4"), whole.metric)
    by_rank = {each.rank: each.p_value for each in found.losses}
    assert math.isnan(by_rank[2])
    assert by_rank[4] == pytest.approx(alone.p_value)
    table = ranks_tables(found)[1]
    assert next(row[2] for row in table.rows if row[0] == "r = 2 against r = 2") == "-"
