"""Verdicts and advice follow from what was measured, and say what is missing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lora_lightning.diagnosis.advice import Advice, advise
from lora_lightning.diagnosis.costs import (
    INFERENCE,
    PEAK_MEMORY,
    CostTable,
    cost_table,
    note_on_missing_costs,
    weights_by_rank,
)
from lora_lightning.diagnosis.failure_modes import (
    Evidence,
    find_failure_modes,
    unchecked_failure_modes,
    undecided_failure_modes,
)
from lora_lightning.diagnosis.rank_threshold import find_rank_threshold
from lora_lightning.diagnosis.report import make_page
from lora_lightning.diagnosis.report_figures import costs_figures
from lora_lightning.diagnosis.report_tables import costs_table, ranks_tables
from lora_lightning.diagnosis.sensitivity import SkipChoice
from lora_lightning.diagnosis.skip_proof import reason_not_to_train
from lora_lightning.diagnosis.specification import SkipProof
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.diagnosis.verdicts import DiagnosisVerdict, State, reach_verdicts
from lora_lightning.runs.devices import device_names
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.study_results import StudyResults
from tests.diagnosis import planted
from tests.diagnosis.small_diagnosis import leave_figures_out


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
    weights, sizes = {"float32, r = 8": 1000.0, "NF4, r = 8": 400.0}, dict.fromkeys(planted.SEEDS, 50.0)
    return cost_table(
        planted.diagnosis(), planted.results(loss), weights, {"NF4, r = 8": sizes, "float32, r = 8": sizes}
    )


def advice(loss: float = 0.0, table: CostTable | None = None, **changes: Any) -> Advice:
    reached = list(verdicts(loss, **changes).values())
    ranks = changes.get("ranks", find_rank_threshold(planted.diagnosis(), planted.results(loss)))
    compared = None if ranks is None else ranks.compared
    merges = changes.get("merges", planted.merges())
    return advise(planted.diagnosis(), reached, table or costs(loss), compared, merges)


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
        "memory of the weights (NF4 takes 60 % less) or peak memory (NF4 takes 40 % less) counts more than quality, "
        "which is lost"
    )
    assert "time a step (NF4 takes 50 % more) counts" in worse.use_full
    same = advice()
    assert same.use_full == ("time a step (NF4 takes 50 % more) counts",)  # and not what costs the same
    (reason,) = same.use_quantized
    assert reason.startswith("memory of the weights (NF4 takes 60 % less) counts: NF4, r = 8 is at least as good")
    assert "p = " in same.missing[0]


def test_missing_measurements_are_said() -> None:
    found = verdicts(ranks=None, similarity=None, merges=None, unchecked=("overfitting",))
    assert {each.state for each in found.values()} == {State.MISSING}
    (reason,) = advice(ranks=None).use_quantized
    assert reason == (
        "memory of the weights (NF4 takes 60 % less) counts more than quality, of which a loss is not ruled out"
    )
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
    found = verdicts(undecided=("insufficient rank",))[VerdictName.HEALTHY]
    assert found.state is State.UNDECIDED
    assert found.sentence == "No failure mode was found, but the data do not decide about insufficient rank."
    both = verdicts(unchecked=("overfitting",), undecided=("insufficient rank",))[VerdictName.HEALTHY]
    assert both.state is State.MISSING
    assert both.sentence.endswith("to look for overfitting, and the data do not decide about insufficient rank.")


def of_seeds(study: StudyResults, seeds: Mapping[str, Sequence[int]]) -> StudyResults:
    """Keeps these seeds of each configuration; none of those that are not named."""
    kept = [
        replace(
            each,
            values={seed: each.values[seed] for seed in seeds.get(each.name, ())},
            outcomes={seed: each.outcomes[seed] for seed in seeds.get(each.name, ())},
        )
        for each in study.configurations
    ]
    return replace(study, configurations=kept)


def test_ranks_that_no_test_was_possible_for_are_not_measured_and_say_why() -> None:
    every = {each.name: planted.SEEDS for each in planted.results().configurations}
    no_largest = {name: seeds for name, seeds in every.items() if not name.endswith("r = 8")}
    for seeds, reason in (
        (dict.fromkeys(every, (0,)), "not enough evidence, one seed shows no variation between seeds"),
        (no_largest, "not enough evidence, no seed in common"),
    ):
        ranks = find_rank_threshold(planted.diagnosis(rank=4), of_seeds(planted.results(0.06), seeds))
        found = verdicts(ranks=ranks)[VerdictName.ENOUGH_RANK]
        assert found.state is State.MISSING
        assert f"NF4, r = 4 against NF4, r = 8: {reason}" in found.sentence
        assert f"float32, r = 4 against float32, r = 8: {reason}" in found.sentence
    close = planted.results(accuracies=(0.80, 0.905, 0.92), examples=200)
    found = verdicts(ranks=find_rank_threshold(planted.diagnosis(), close))[VerdictName.ENOUGH_RANK]
    assert found.state is State.UNDECIDED
    assert "NF4, r = 4 against NF4, r = 8 is undecided at a margin of 2 points" in found.sentence


def test_a_share_names_its_seeds_which_may_be_fewer_than_those_of_the_loss() -> None:
    own, study = planted.diagnosis(rank=4), planted.results(0.06)
    every = {each.name: planted.SEEDS for each in study.configurations}
    for largest, state, said in (
        ((0, 1, 2), State.NO, "with the seeds 0, 1, 2; 2 more that tell the loss have no run at r = 8."),
        (planted.SEEDS, State.NO, "with the seeds 0, 1, 2, 3, 4."),
        ((), State.MISSING, "No seed has finished runs of NF4 at r = 8 and of both precisions at r = 4."),
    ):
        ranks = find_rank_threshold(own, of_seeds(study, every | {"NF4, r = 8": largest}))
        found = {each.name: each for each in reach_verdicts(own, ranks, None, None, None, ())}[VerdictName.MORE_RANK]
        assert (found.state, said in found.sentence) == (state, True)
        assert "unknown" not in found.sentence


def test_a_share_over_failed_runs_proves_nothing() -> None:
    """The largest rank buys back nearly all with the runs that are left, which may be its good ones."""
    own, study = planted.diagnosis(rank=4), planted.results(0.06)
    better = replace(planted.results(0.005).configurations[-1], failed_seeds=(8, 9))
    kept = {each.name: planted.SEEDS for each in study.configurations} | {better.name: (0, 1, 2)}
    for failed, state in ((2, State.UNDECIDED), (0, State.YES)):
        each = replace(better, failed_seeds=tuple(range(failed)))
        results = of_seeds(replace(study, configurations=[*study.configurations[:-1], each]), kept)
        found = {
            each.name: each for each in reach_verdicts(own, find_rank_threshold(own, results), None, None, None, ())
        }[VerdictName.MORE_RANK]
        assert found.state is state
        named = "Nothing is proven: 2 of 5 runs of NF4, r = 8 failed or have no result."
        assert found.sentence.endswith(named) is bool(failed)


def test_verdicts_on_a_part_of_the_seeds_say_so() -> None:
    study = planted.results()
    kept = {each.name: (0, 1) for each in study.configurations}
    ranks = find_rank_threshold(planted.diagnosis(), of_seeds(study, kept))
    lacking = "Seeds that lack a finished run at r = 8: 2, 3, 4."
    found = verdicts(ranks=ranks, lacking=lacking)
    quality = found[VerdictName.NOT_WORSE]
    assert quality.sentence.endswith("It rests on 2 of 5 seeds: the others lack a finished run of both.")
    for name in (VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED, VerdictName.PRECISIONS_DIFFER):
        assert found[name].sentence.endswith(lacking)
    assert lacking not in found[VerdictName.MERGE_KEEPS_GAIN].sentence
    assert "It rests on" not in verdicts()[VerdictName.NOT_WORSE].sentence


def test_what_is_not_measured_yet_is_not_said_to_lack_seeds() -> None:
    found = verdicts(similarity=None, merges=None)
    for name in (VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED, VerdictName.PRECISIONS_DIFFER):
        assert found[name].sentence.startswith("The adapters of the finished runs are not compared yet; run the diagn")
    assert found[VerdictName.MERGE_KEEPS_GAIN].sentence.startswith("No merge is measured yet; run the diagnosis")
    without_scores = verdicts(merges=replace(planted.merges(), targets=()))[VerdictName.MERGE_KEEPS_GAIN]
    assert without_scores.state is State.MISSING
    assert without_scores.sentence == "Merges are not judged: this task has no score of each validation example."


def test_seeds_with_nothing_in_common_say_little_and_that_is_said() -> None:
    """Whatever the precision does: adapters of both precisions have nothing in common here."""
    for similarity, is_said in (
        (planted.similarity(shared=0.0), True),
        (planted.similarity(shared=0.0, by_precision=50.0), True),
        (planted.similarity(), False),
    ):
        found = verdicts(similarity=similarity)[VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED]
        assert found.state is (State.UNDECIDED if is_said else State.YES)
        assert similarity.against_seeds.high < 0
        assert similarity.seed_cosine == pytest.approx(0.0 if is_said else 0.64, abs=0.05)
        assert f"mean cosine of dW of two seeds: {similarity.seed_cosine:.3f})." in found.sentence
        assert ("Seeds do not tell: where adapters of two seeds have a cosine below 0.5" in found.sentence) is is_said
        assert ("less than another seed is undecided" in found.sentence) is is_said
        # That the precision changes adapters more than another seed does is ruled out all the same.
        evidence = replace(planted.healthy(), similarity=similarity)
        assert (unchecked_failure_modes(evidence), undecided_failure_modes(evidence)) == ((), ())


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
    found = advise(planted.diagnosis(), own, CostTable((), {}), None, None)
    assert found.use_quantized == ()
    assert "It is not measured that NF4 saves 5 % of memory or time." in found.missing


def test_what_to_do_with_a_precision_is_no_reason_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 points are lost, no saving is told, a requantized merge loses, and a list is proven."""
    leave_figures_out(monkeypatch)
    ranks = find_rank_threshold(planted.diagnosis(), planted.results(0.06))
    own, merges = list(verdicts(0.06, skip=planted.skip()[1]).values()), planted.merges(requantized=0.8)
    found = advise(planted.diagnosis(), own, CostTable((), {}), ranks.compared, merges)
    assert (found.use_quantized, found.if_quantized) == ((), ())
    answers = make_page(planted.findings(advice=found, errors=None)).answers
    assert [each for each in answers if "NF4 when" in each or each.startswith("If you use NF4")] == []
    assert answers[-1] == "Nothing measured so far speaks for NF4."
    cheaper = advise(planted.diagnosis(), own, costs(0.06), ranks.compared, merges)
    assert len(cheaper.use_quantized) == 1
    starts = ("leave the sensitive modules unquantized: It is proven.", "keep its adapter apart or merge it into")
    assert all(each.startswith(start) for each, start in zip(cheaper.if_quantized, starts, strict=True))
    answers = make_page(planted.findings(advice=cheaper, errors=None)).answers
    assert "If you use NF4, leave the sensitive modules unquantized: It is proven." in answers
    assert not any(each.startswith("Nothing") for each in answers)


def test_random_permutations_are_said() -> None:
    similarity = planted.similarity()
    assert similarity.permutation is not None
    drawn = replace(similarity, permutation=replace(similarity.permutation, splits=100_000, is_exact=False))
    found = verdicts(similarity=drawn)[VerdictName.PRECISIONS_DIFFER]
    assert "random permutations of labels, that of the data included, p = " in found.sentence
    assert "of 100,000 splits" in found.sentence


def test_a_requantized_merge_that_loses_is_a_condition() -> None:
    own = list(verdicts(why_no_list="No proof was asked for.").values())
    reasons = advise(planted.diagnosis(), own, costs(), None, planted.merges(requantized=0.8))
    assert any("keep its adapter apart or merge it into the dequantized base" in each for each in reasons.if_quantized)
    assert not any("quantiz" in each for each in reasons.use_full)  # no merge of that precision was measured
    proof = replace(planted.diagnosis(), proof=SkipProof(seeds=(0,)))
    assert "No proof was asked for." in advise(proof, own, costs(), None, planted.merges()).missing


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
    (reason,) = advise(planted.diagnosis(), verdict, table, None, None).use_full
    ends = f"{-saving.value:.0f} % more, 95 % interval {-saving.high:.0f} to {-saving.low:.0f}"
    assert reason == f"time a step (NF4 takes {ends}) counts"


def with_costs(cost: str, **numbers: dict[int, float]) -> CostTable:
    """Costs of both precisions at the compared rank, measured with some of the seeds."""
    study, names = planted.results(), {f"{name}, r = 8": each for name, each in numbers.items()}
    own = [
        replace(each, measurements={cost: names[each.name]}, values=dict.fromkeys(names[each.name], 0.9))
        for each in study.configurations
        if each.name in names
    ]
    others = [replace(each, values={}) for each in study.configurations if each.name not in names]
    return cost_table(planted.diagnosis(), replace(study, configurations=[*others, *own]), {}, {})


def test_what_one_seed_or_chance_took_is_no_reason() -> None:
    """Time a step of one run each, then of three whose interval has 0; a counted cost needs no interval."""
    one = with_costs("seconds_per_step", float32={0: 1.0}, NF4={0: 1.43})
    found = advice(table=one)
    assert found.use_full == ()
    sentence = "Whether time a step differs is not told from noise: NF4 takes 43 % more, with one seed."
    assert sentence in found.missing
    noisy = {"float32": {0: 1.0, 1: 1.0, 2: 1.0}, "NF4": {0: 0.5, 1: 2.5, 2: 1.5}}
    found = advice(table=with_costs("seconds_per_step", **noisy))
    assert found.use_full == ()
    assert any("NF4 takes 50 % more, 95 % interval -" in each for each in found.missing)
    weights = {"float32, r = 8": 1000.0, "NF4, r = 8": 400.0}
    study = planted.results()
    single = [replace(each, values={0: 0.9}, outcomes={}, measurements={}) for each in study.configurations]
    counted = cost_table(planted.diagnosis(), replace(study, configurations=single), weights, {})
    assert "memory of the weights (NF4 takes 60 % less)" in advice(table=counted).use_quantized[0]


def test_inference_that_costs_more_is_a_reason() -> None:
    """Of three seeds; with batches of 32, both take the same."""
    study = planted.results()
    times = {"float32": (5.0, 5.1, 5.2), "NF4": (10.0, 10.3, 10.4)}
    timed = [
        replace(
            each,
            measurements={
                INFERENCE[0]: dict(enumerate(times[each.name.partition(",")[0]])),
                INFERENCE[1]: dict.fromkeys(range(3), 1.0),
            },
        )
        for each in study.configurations
    ]
    found = advice(table=cost_table(planted.diagnosis(), replace(study, configurations=timed), {}, {}))
    (reason,) = found.use_full
    assert reason.startswith("inference time in batches of 1 (NF4 takes 101 % more, 95 % interval ")
    assert "batches of 32" not in " ".join((*found.use_quantized, *found.missing))


def test_memory_of_a_whole_process_is_not_compared() -> None:
    """NF4 seems to take 40 % less; on a CPU that may be the order of runs."""
    study = planted.results(0.06)
    gpu, cpu = (
        cost_table(planted.diagnosis(), study, {}, {}, is_process_memory=is_process) for is_process in (False, True)
    )
    assert gpu.rows[-1].savings[PEAK_MEMORY].value == pytest.approx(40)
    assert PEAK_MEMORY not in cpu.rows[-1].savings
    assert cpu.rows[-1].costs[PEAK_MEMORY] == gpu.rows[-1].costs[PEAK_MEMORY]
    assert gpu.pareto.keys() - cpu.pareto.keys() == {PEAK_MEMORY}
    assert any("peak memory (NF4 takes 40 % less)" in each for each in advice(0.06, gpu).use_quantized)
    found = advice(0.06, cpu)
    assert not any("peak memory" in each for each in (*found.use_quantized, *found.use_full))
    assert any(each.startswith("Peak memory is not compared: on a CPU it is that of the") for each in found.missing)
    shown = costs_table(cpu)
    assert "peak memory bytes (of the whole process)" in shown.headings
    assert "it grows with the order of runs" in (shown.caption or "")
    assert "Peak memory is not compared" not in (costs_table(gpu).caption or "")
    names = [figure.name for figure in costs_figures(planted.findings(costs=cpu))]
    assert "cost_peak_memory_bytes" not in names


def test_times_of_several_devices_are_not_compared() -> None:
    """NF4 took 50 % more a step, on another device."""
    study = planted.results()
    devices = {"seconds_per_step": ("NVIDIA H200", "cpu"), "wall_seconds": ("NVIDIA H200", "cpu")}
    table = cost_table(planted.diagnosis(), study, {}, {}, devices=devices)
    row = table.rows[-1]
    assert row.costs["seconds_per_step"].value == 1.5
    assert "seconds_per_step" not in row.savings
    assert "seconds_per_step" not in table.pareto
    assert row.savings.keys() >= {PEAK_MEMORY, "trainable_parameters"}
    found = advice(table=table)
    assert not any("time a step" in each for each in (*found.use_quantized, *found.use_full))
    sentence = (
        "Times are not compared (seconds per step): they are of different devices (NVIDIA H200, cpu); diagnose run"
    )
    assert any(each.startswith(sentence) for each in found.missing)
    assert sentence in (costs_table(table).caption or "")
    assert [each.name for each in costs_figures(planted.findings(costs=table))] == ["cost_peak_memory_bytes"]
    assert "Times are not compared" not in (costs_table(costs()).caption or "")


def test_a_device_of_an_unknown_model_may_be_any_of_its_type() -> None:
    assert device_names([("cuda", None), ("cuda", "NVIDIA H200"), (None, None)]) == ("NVIDIA H200",)
    assert device_names([("cpu", None), ("cuda", None)]) == ("cpu", "cuda")
    assert device_names([("cuda", "NVIDIA H200"), ("cuda", "NVIDIA L4")]) == ("NVIDIA H200", "NVIDIA L4")


def test_weights_are_counted_at_every_rank() -> None:
    """An adapter of rank r has 1,000 r numbers of 4 bytes."""
    compared = {"float32": 100_000.0, "NF4": 60_000.0}
    sizes = {"float32": 4, "NF4": 4}
    found = weights_by_rank(planted.diagnosis(rank=4), planted.results(), compared, sizes)
    assert found == {
        f"{precision}, r = {rank}": compared[precision] + 4000.0 * (rank - 4)
        for precision in compared
        for rank in planted.RANKS
    }
    halved = weights_by_rank(planted.diagnosis(rank=4), planted.results(), compared, sizes | {"NF4": 2})
    assert halved == found | {f"NF4, r = {rank}": 60_000 + 2000.0 * (rank - 4) for rank in planted.RANKS}
    table = cost_table(planted.diagnosis(rank=4), planted.results(), found, {})
    assert set(table.pareto["weight_bytes"].points) == set(found)
    savings = [row.savings["weight_bytes"].value for row in table.rows if row.precision == "NF4"]
    assert savings == pytest.approx([100 * 40 / 92, 40, 100 * 40 / 116])
    bare = [replace(each, measurements={}) for each in planted.results().configurations]
    unknown = weights_by_rank(planted.diagnosis(), replace(planted.results(), configurations=bare), compared, sizes)
    assert unknown == {f"{precision}, r = 8": size for precision, size in compared.items()}
    part = cost_table(planted.diagnosis(), planted.results(), unknown, {})
    text = costs_figures(planted.findings(costs=part))[0].description
    assert "Not measured, and not drawn: float32, r = 2, float32, r = 4, NF4, r = 2, NF4, r = 4." in text


def test_costs_that_nobody_measured_are_named() -> None:
    assert note_on_missing_costs(costs()) == (
        "Costs that were not measured: inference time; diagnose run --timings measures the times of all runs."
    )
    nothing = cost_table(planted.diagnosis(), planted.results(), {}, {})
    assert note_on_missing_costs(nothing).startswith("Costs that were not measured: memory of the weights, inference")
    study = planted.results()
    timed = [
        replace(each, measurements={**each.measurements, "inference_ms_adapter_batch_1": dict.fromkeys(each.values, 5)})
        for each in study.configurations
    ]
    weights = {"float32, r = 8": 1000.0}
    assert (
        note_on_missing_costs(cost_table(planted.diagnosis(), replace(study, configurations=timed), weights, {})) == ""
    )


def test_one_seed_is_no_test_and_leaves_the_correction_alone() -> None:
    study = planted.results(0.06)
    single = [
        replace(each, values={0: each.values[0]}, outcomes={0: each.outcomes[0]}) if each.rank != 8 else each
        for each in study.configurations
    ]
    found = find_rank_threshold(planted.diagnosis(), replace(study, configurations=single))
    assert found.compared is not None
    assert [math.isnan(each.p_value) for each in found.losses] == [True, True, False]
    assert found.losses[-1].p_value == found.compared.p_value  # the only one that is tested
    assert [row[2] for row in ranks_tables(found)[1].rows[:2]] == ["-", "-"]
    own = planted.diagnosis(rank=4)
    ranks = find_rank_threshold(own, replace(study, configurations=single))
    assert ranks.compared is not None
    assert not ranks.compared.told_from_zero
    reached = {each.name: each for each in reach_verdicts(own, ranks, None, None, None, ())}
    one = "one seed shows no variation between seeds"
    assert f"The difference is not tested: {one}" in reached[VerdictName.NOT_WORSE].sentence
    assert reached[VerdictName.MORE_RANK].sentence.startswith(f"The loss by quantization is not tested ({one}")
    assert "so it is not known whether there is anything to buy back" in reached[VerdictName.MORE_RANK].sentence
    choice = SkipChoice(("a",), 1, 10, (), ())
    reason = reason_not_to_train(replace(own, proof=SkipProof()), choice, ranks.compared)
    assert reason == reached[VerdictName.MORE_RANK].sentence


def test_a_quantized_precision_that_is_better_loses_nothing() -> None:
    ranks = find_rank_threshold(planted.diagnosis(rank=4), planted.results(-0.06))
    assert ranks.compared is not None
    assert ranks.compared.why_no_loss.startswith("Quantization makes the metric better, told from zero")


def test_a_loss_that_is_told_from_zero_counts_though_the_margin_is_undecided() -> None:
    """A loss of 2 points at a margin of 2 points."""
    study = planted.results(0.02)
    ranks = find_rank_threshold(planted.diagnosis(), study)
    assert ranks.compared is not None
    assert ranks.compared.is_loss
    found = advice(0.02)
    assert verdicts(0.02)[VerdictName.NOT_WORSE].state is State.UNDECIDED
    start = "quality counts, of which some is lost, by more than the margin or not: NF4, r = 8 against float32, r = 8"
    assert found.use_full[0].startswith(start)
    assert found.use_quantized[0].endswith("more than quality, of which some is lost, by more than the margin or not")


@pytest.mark.parametrize(
    ("dequantized", "reason"),
    [
        (1.0, "keep its adapter apart or merge it into the dequantized base: quantizing the merged model again"),
        (0.9, "keep its adapter apart: even merged into the dequantized base, it loses a part of its gain"),
        (0.98, "keep its adapter apart: quantizing the merged model again loses a part"),
    ],
)
def test_no_merge_that_loses_is_advised(dequantized: float, reason: str) -> None:
    merges = planted.merges(requantized=0.8, dequantized=dequantized)
    found = advice(merges=merges)
    assert [each.startswith(reason) for each in found.if_quantized] == [True]
    assert advice(merges=planted.merges()).if_quantized == ()


@pytest.mark.parametrize("ratio", [0.97, 0.975, 0.98, 0.985, 0.99, 1.0])
def test_a_merge_that_keeps_the_gain_does_not_drift(ratio: float) -> None:
    merges = planted.merges(dequantized=ratio)
    kept = verdicts(merges=merges)[VerdictName.MERGE_KEEPS_GAIN].state
    drifts = any(each.name == "merge drift" for each in find_failure_modes(Evidence(merges=merges)))
    assert kept is not State.YES or not drifts
    assert kept is not State.NO or drifts


@pytest.mark.parametrize(
    ("bought_back", "state"),
    [
        (Interval(0.1, 0.0, 0.3), State.NO),
        (Interval(0.4, 0.2, 0.6), State.UNDECIDED),
        (Interval(0.1, math.nan, math.nan), State.UNDECIDED),
    ],
)
def test_a_list_that_buys_back_too_little_is_refuted(bought_back: Interval, state: State) -> None:
    skip = replace(planted.skip()[1], proven=False, bought_back=bought_back)
    own = planted.diagnosis(proof=SkipProof(bought_back=0.5))
    reached = {each.name: each for each in reach_verdicts(own, None, None, None, skip, ())}
    found = reached[VerdictName.SKIP_LIST_PROVEN]
    assert found.state is state
    assert ("That is less than the 50% that it has to buy back." in found.sentence) is (state is State.NO)
