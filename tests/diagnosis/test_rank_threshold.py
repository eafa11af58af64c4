"""Planted losses by rank and by precision: what is enough, what quantization costs, and what more rank buys back."""

import math
from dataclasses import replace

import pytest

from lora_lightning.diagnosis.costs import cost_table
from lora_lightning.diagnosis.rank_threshold import find_rank_threshold
from lora_lightning.statistics.multiple_tests import holm
from lora_lightning.statistics.pairing import compare
from lora_lightning.statistics.study_results import Metric, Scale
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
