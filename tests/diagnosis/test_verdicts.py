"""Verdicts and advice follow from what was measured, and say what is missing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lora_lightning.diagnosis.costs import CostTable, cost_table
from lora_lightning.diagnosis.failure_modes import find_failure_modes, unchecked_failure_modes
from lora_lightning.diagnosis.rank_threshold import find_rank_threshold
from lora_lightning.diagnosis.report_figures import costs_figures
from lora_lightning.diagnosis.specification import SkipProof
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.diagnosis.verdicts import Advice, DiagnosisVerdict, State, advise, reach_verdicts
from lora_lightning.statistics.jackknife import Interval
from tests.diagnosis import planted


def verdicts(loss: float = 0.0, **changes: Any) -> dict[VerdictName, DiagnosisVerdict]:
    evidence = planted.healthy()
    found = {
        "ranks": find_rank_threshold(planted.diagnosis(), planted.results(loss)),
        "similarity": evidence.similarity,
        "merges": evidence.merges,
        "skip": None,
        "failures": (),
    }
    reached = reach_verdicts(planted.diagnosis(), **(found | changes))  # type: ignore[arg-type]
    return {each.name: each for each in reached}


def costs(loss: float = 0.0) -> CostTable:
    weights, sizes = {"float32": 1000.0, "NF4": 400.0}, dict.fromkeys(planted.SEEDS, 50.0)
    return cost_table(
        planted.diagnosis(), planted.results(loss), weights, {"NF4, r = 8": sizes, "float32, r = 8": sizes}
    )


def advice(loss: float = 0.0, **changes: Any) -> Advice:
    return advise(planted.diagnosis(), list(verdicts(loss, **changes).values()), costs(loss), planted.merges())


def test_a_healthy_pair_without_a_loss() -> None:
    found = verdicts()
    states = {name: each.state for name, each in found.items()}
    assert states == {
        VerdictName.NOT_WORSE: State.YES,
        VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED: State.YES,
        VerdictName.PRECISIONS_DIFFER: State.UNDECIDED,
        VerdictName.ENOUGH_RANK: State.YES,
        VerdictName.MORE_RANK: State.MISSING,
        VerdictName.MERGE_KEEPS_GAIN: State.YES,
        VerdictName.SKIP_LIST_PROVEN: State.MISSING,
        VerdictName.HEALTHY: State.YES,
    }
    assert "not told from zero" in found[VerdictName.NOT_WORSE].sentence
    assert "p = " in found[VerdictName.PRECISIONS_DIFFER].sentence
    assert found[VerdictName.ENOUGH_RANK].sentence == "For float32 r = 4 is enough; for NF4 r = 4 is enough."


def test_a_loss_speaks_against_quantization_and_its_savings_for_it() -> None:
    worse = advice(0.06)
    assert any(each.startswith("quality counts: NF4, r = 8 is worse") for each in worse.use_full)
    assert worse.use_quantized[0] == (
        "memory of the weights (60 % less) or peak memory (40 % less) counts more than quality, which is lost"
    )
    assert "time a step (50 % more) counts" in worse.use_full
    same = advice()
    assert same.use_full == ("time a step (50 % more) counts",)  # and not what costs the same
    (reason,) = same.use_quantized
    assert reason.startswith("memory of the weights (60 % less) counts: NF4, r = 8 is at least as good")
    assert "p = " in same.missing[0]


def test_missing_measurements_are_said() -> None:
    found = verdicts(ranks=None, similarity=None, merges=None, unchecked=("overfitting",))
    assert {each.state for each in found.values()} == {State.MISSING}
    (reason,) = advice(ranks=None).use_quantized
    assert reason == "memory of the weights (60 % less) counts more than quality, of which a loss is not ruled out"
    missing = advice(ranks=None, similarity=None, merges=None, unchecked=("overfitting",)).missing
    assert len(missing) == 7  # nobody asked for a proof of a list


@pytest.mark.parametrize(
    ("largest", "state"),
    [(0.0, State.NO), (0.055, State.YES), (0.03, State.UNDECIDED)],
    ids=["nothing", "nearly all", "half"],
)
def test_more_rank_buys_back_what_quantization_lost(largest: float, state: State) -> None:
    """A loss of 6 points at r = 4; NF4 gains some of it from r = 4 to r = 8."""
    own, study = planted.diagnosis(rank=4), planted.results(0.06)
    better = planted.results(0.06 - largest).configurations[-1]
    study = replace(study, configurations=[*study.configurations[:-1], better])
    ranks = find_rank_threshold(own, study)
    found = {each.name: each for each in reach_verdicts(own, ranks, None, None, None, ())}[VerdictName.MORE_RANK]
    assert found.state is state
    assert found.sentence.startswith("NF4 with r = 8 buys back ")
    assert f"{ranks.share.value:.4g} (95 % interval" in found.sentence
    assert ranks.share.value == pytest.approx(largest / 0.06, abs=0.15)


def test_without_a_loss_or_a_larger_rank_there_is_nothing_to_buy_back() -> None:
    no_loss = find_rank_threshold(planted.diagnosis(rank=4), planted.results())
    for own, ranks, reason in (
        (planted.diagnosis(rank=4), no_loss, "not told from zero"),
        (planted.diagnosis(), find_rank_threshold(planted.diagnosis(), planted.results(0.06)), "is the largest rank"),
    ):
        found = {each.name: each for each in reach_verdicts(own, ranks, None, None, None, ())}[VerdictName.MORE_RANK]
        assert found.state is State.MISSING
        assert reason in found.sentence


def test_a_pair_is_not_healthy_if_rules_lack_data() -> None:
    found = verdicts(unchecked=("overfitting", "merge drift"))[VerdictName.HEALTHY]
    assert found.state is State.MISSING
    assert found.sentence == "No failure mode was found, but there is no data to look for overfitting, merge drift."


def test_seeds_with_nothing_in_common_say_little_and_that_is_said() -> None:
    """Whatever the precision does: adapters of both precisions have nothing in common here."""
    for similarity, is_said in (
        (planted.similarity(shared=0.0), True),
        (planted.similarity(shared=0.0, by_precision=50.0), True),
        (planted.similarity(), False),
    ):
        found = verdicts(similarity=similarity)[VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED]
        assert found.state is State.YES
        assert similarity.seed_cosine == pytest.approx(0.0 if is_said else 0.64, abs=0.05)
        assert f"mean cosine of dW of two seeds: {similarity.seed_cosine:.3f})." in found.sentence
        assert ("This says little: where adapters of two seeds have a cosine below 0.5" in found.sentence) is is_said
        unchecked = unchecked_failure_modes(replace(planted.healthy(), similarity=similarity))
        assert unchecked == (("divergence beyond seed noise",) if is_said else ())


def test_the_opposite_is_said_if_it_is_proven() -> None:
    found = verdicts(
        0.06,
        similarity=planted.similarity(by_precision=0.0, moved=4.0),
        merges=replace(planted.merges(), targets=planted.merges(0.5).targets[::-1]),
        failures=find_failure_modes(replace(planted.healthy(), errors=planted.errors(pad_token_id=100))),
    )
    assert found[VerdictName.NOT_WORSE].state is State.NO
    assert found[VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED].state is State.NO
    assert found[VerdictName.PRECISIONS_DIFFER].state is State.YES
    assert found[VerdictName.HEALTHY].state is State.NO
    assert "pad token outside the vocabulary" in found[VerdictName.HEALTHY].sentence


def test_a_merge_that_is_not_judged_decides_nothing() -> None:
    assert verdicts(merges=planted.merges(judged=False))[VerdictName.MERGE_KEEPS_GAIN].state is State.UNDECIDED


def test_a_merge_of_an_adapter_without_gain_keeps_nothing() -> None:
    """Its ratio is 1 all the same: the merge does as much harm as the adapter."""
    targets = planted.merges().targets
    harmful = [replace(each, recovery=replace(each.recovery, gain=planted.near(-0.5))) for each in targets]
    found = verdicts(merges=replace(planted.merges(), targets=tuple(harmful)))[VerdictName.MERGE_KEEPS_GAIN]
    assert found.state is State.UNDECIDED
    start = "The adapter of NF4, r = 8, seed 0 has no gain over its base that a merge could keep (gain -0.5"
    assert found.sentence.startswith(start)


def test_without_a_measured_saving_none_is_claimed() -> None:
    own = list(verdicts().values())
    found = advise(planted.diagnosis(), own, CostTable((), {}), None)
    assert found.use_quantized == ()
    assert "It is not measured that NF4 saves 5 % of memory or time." in found.missing


def test_random_permutations_are_said() -> None:
    similarity = planted.similarity()
    assert similarity.permutation is not None
    drawn = replace(similarity, permutation=replace(similarity.permutation, splits=100_000, is_exact=False))
    found = verdicts(similarity=drawn)[VerdictName.PRECISIONS_DIFFER]
    assert "random permutations of labels, that of the data included, p = " in found.sentence
    assert "of 100,000 splits" in found.sentence


def test_a_requantized_merge_that_loses_is_a_reason() -> None:
    own = list(verdicts(why_no_list="No proof was asked for.").values())
    reasons = advise(planted.diagnosis(), own, costs(), planted.merges(requantized=0.8))
    assert any("kept apart or merged into the dequantized base" in each for each in reasons.use_quantized)
    assert not any("quantiz" in each for each in reasons.use_full)  # no merge of that precision was measured
    proof = replace(planted.diagnosis(), proof=SkipProof(seeds=(0,)))
    assert "No proof was asked for." in advise(proof, own, costs(), planted.merges()).missing


def test_costs_are_means_with_savings_and_a_front() -> None:
    table = costs()
    rows = {row.configuration: row for row in table.rows}
    assert list(rows) == [f"{precision}, r = {rank}" for precision in ("float32", "NF4") for rank in (2, 4, 8)]
    row = rows["NF4, r = 8"]
    assert row.costs["weight_bytes"] == Interval(400, 400, 400)
    assert {cost: saving.value for cost, saving in row.savings.items()} == pytest.approx(
        {
            "weight_bytes": 60,
            "peak_memory_bytes": 0,
            "seconds_per_step": -50,
            "adapter_bytes": 0,
            "trainable_parameters": 0,
        }
    )
    assert rows["float32, r = 8"].savings == {}
    assert "adapter_bytes" not in rows["NF4, r = 2"].costs
    assert "weight_bytes" not in rows["NF4, r = 2"].costs  # it was measured at the compared rank
    front = table.pareto["trainable_parameters"].best
    assert any("r = 2" in name for name in front)
    assert set(table.pareto) == {*row.costs}


def test_costs_are_compared_on_common_seeds() -> None:
    study = planted.results()
    last = study.configurations[-1]
    measurements = {cost: {**numbers, 10: 1e12} for cost, numbers in last.measurements.items()}
    last = replace(last, values={**last.values, 10: 0.0}, measurements=measurements)
    more = replace(study, configurations=[*study.configurations[:-1], last])
    own = cost_table(planted.diagnosis(), more, {}, {}).rows
    assert own == cost_table(planted.diagnosis(), study, {}, {}).rows
    apart = replace(last, values={10: 0.5}, measurements={"seconds_per_step": {10: 3.0}})
    row = cost_table(
        planted.diagnosis(), replace(more, configurations=[*study.configurations[:-1], apart]), {}, {}
    ).rows[-1]
    assert (row.quality, row.costs["seconds_per_step"].value, row.savings) == (50, 3, {})
    assert len(row.costs) == 1


def test_the_front_is_among_means_over_the_same_seeds() -> None:
    """The compared rank has two more seeds, which are easy and fast: over all of them, it would be the best."""
    study = planted.results()
    values = {r: dict.fromkeys((0, 1, 2), quality) for r, quality in ((2, 0.91), (4, 0.92), (8, 0.90))}
    values[8] |= {3: 1.0, 4: 1.0}
    steps = {r: dict.fromkeys((0, 1, 2), float(r)) | {3: 0.1, 4: 0.1} for r in planted.RANKS}
    rows = [
        replace(each, values=values[r], outcomes={}, measurements={"seconds_per_step": steps[r]})
        for each in study.configurations
        for r in [int(each.rank or 0)]
    ]
    table = cost_table(planted.diagnosis(), replace(study, configurations=rows), {}, {})
    row = next(row for row in table.rows if row.configuration == "NF4, r = 8")
    assert row.seeds == (0, 1, 2, 3, 4)
    assert row.quality == pytest.approx(94)
    front = table.pareto["seconds_per_step"]
    assert front.seeds == (0, 1, 2)
    assert front.points["NF4, r = 8"] == pytest.approx((8, 90))
    assert {*front.best} == {f"{precision}, r = {rank}" for precision in ("float32", "NF4") for rank in (2, 4)}
    (figure,) = costs_figures(planted.findings(costs=table))
    assert "as means over the seeds 0, 1, 2, which all configurations here have" in figure.description
    apart = [replace(each, values={int(each.rank or 0): 1.0}) for each in rows]
    nothing = cost_table(planted.diagnosis(), replace(study, configurations=apart), {}, {})
    assert not any(each.best for each in nothing.pareto.values())
    assert costs_figures(planted.findings(costs=nothing)) == ()


def test_costs_and_savings_have_intervals_over_seeds() -> None:
    random = np.random.default_rng(0)
    own, other = 1.5 + 0.1 * random.random(5), 1.0 + 0.1 * random.random(5)
    study = planted.results()
    steps = {"float32, r = 8": other, "NF4, r = 8": own}
    configurations = [
        replace(each, measurements={"seconds_per_step": dict(zip(planted.SEEDS, steps[each.name], strict=True))})
        if each.name in steps
        else each
        for each in study.configurations
    ]
    table = cost_table(planted.diagnosis(), replace(study, configurations=configurations), {}, {})
    row = next(row for row in table.rows if row.configuration == "NF4, r = 8")
    half = 2.7764451051977987 * own.std(ddof=1) / np.sqrt(5)
    cost = row.costs["seconds_per_step"]
    assert (cost.value, cost.low, cost.high) == pytest.approx((own.mean(), own.mean() - half, own.mean() + half))
    saving = row.savings["seconds_per_step"]
    assert saving.value == pytest.approx(100 * (1 - own.mean() / other.mean()))
    without = np.array([100 * (1 - np.delete(own, i).mean() / np.delete(other, i).mean()) for i in range(5)])
    half = 2.7764451051977987 * np.sqrt(0.8 * ((without - without.mean()) ** 2).sum())
    assert saving.high - saving.value == pytest.approx(half)
    verdict = [*verdicts().values()]
    (reason,) = advise(planted.diagnosis(), verdict, table, None).use_full
    assert (
        reason
        == f"time a step ({-saving.value:.0f} % more, 95 % interval {-saving.high:.0f} to {-saving.low:.0f}) counts"
    )
