"""Each failure mode is planted once and found, alone; none is found on a healthy pair or without data."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_lightning.diagnosis.adapter_similarity import compare_adapters
from lora_lightning.diagnosis.effects import Grouping
from lora_lightning.diagnosis.failure_modes import (
    RULES,
    Evidence,
    find_failure_modes,
    unchecked_failure_modes,
    undecided_failure_modes,
)
from lora_lightning.diagnosis.rank_threshold import RankThreshold, find_rank_threshold
from lora_lightning.diagnosis.sensitivity import Sensitivity
from lora_lightning.statistics.jackknife import Interval
from tests.diagnosis import planted

POINT = {seed: np.array([[10.0], [0.5]]) for seed in planted.SEEDS}


def with_curves(**rising: int) -> Evidence:
    """Evidence of which so many of the five runs of each precision overfit."""
    curves = {precision: planted.curves(number) for precision, number in rising.items()}
    return replace(planted.healthy(), validation_losses=curves)


def dead() -> Evidence:
    own = planted.adapters()
    broken = own[0].updates | {planted.MODULES[3]: replace(own[0].updates[planted.MODULES[3]], B=torch.zeros(24, 4))}  # type: ignore[operator]
    found = compare_adapters([replace(own[0], updates=broken), *own[1:]], planted.SEEDS, planted.OTHER_SEEDS)
    return replace(planted.healthy(), similarity=found)


def scaled() -> Evidence:
    own = [
        replace(each, updates={name: replace(update, scaling=3.0) for name, update in each.updates.items()})
        if each.is_quantized
        else each
        for each in planted.adapters()
    ]
    return replace(planted.healthy(), similarity=compare_adapters(own, planted.SEEDS, planted.OTHER_SEEDS))


PLANTED = {
    "insufficient rank": lambda: replace(
        planted.healthy(),
        ranks=find_rank_threshold(planted.diagnosis(), planted.results(accuracies=(0.5, 0.7, 0.9))),
    ),
    "divergence beyond seed noise": lambda: replace(
        planted.healthy(), similarity=planted.similarity(by_precision=0.0, moved=4.0)
    ),
    "merge drift": lambda: replace(planted.healthy(), merges=planted.merges(dequantized=0.9)),
    "sensitive layer": lambda: replace(
        planted.healthy(), sensitivity=planted.sensitivity((0.3, 0.011, 0.01, 0.01, 0.01, 0.009))
    ),
    "unused rank": lambda: replace(planted.healthy(), utilization={"NF4": {0: 0.2, 1: 0.1}}),
    "dead adapter": dead,
    "pad token outside the vocabulary": lambda: replace(planted.healthy(), errors=planted.errors(pad_token_id=100)),
    "overfitting": lambda: with_curves(float32=2, NF4=5),
    "scaling that differs": scaled,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_alone(name: str) -> None:
    (found,) = find_failure_modes(PLANTED[name]())
    assert found.name == name
    for part in (found.symptom, found.evidence, found.cause, found.remedy):
        assert len(part) > 10


def test_the_remedy_for_a_sensitive_layer_keeps_what_is_skipped_already() -> None:
    (found,) = find_failure_modes(replace(PLANTED["sensitive layer"](), skipped=("pooler", "head")))
    assert found.remedy.endswith(f"skip_modules: [pooler, head, {planted.MODULES[0]}]")


def test_a_sensitive_layer_says_of_which_modules_the_median_is() -> None:
    (found,) = find_failure_modes(PLANTED["sensitive layer"]())
    assert "of the median module 0.01" in found.evidence
    measured = planted.sensitivity((0.3, 0.011, 0.01, 0.01, 0.01, 0.009))
    fewer = replace(measured, effects=tuple(each for each in measured.effects if each.group != planted.MODULES[5]))
    (found,) = find_failure_modes(replace(planted.healthy(), sensitivity=fewer))
    assert "of the median module of the 5 with the largest scores of 6 0.01" in found.evidence


def test_each_precision_that_gains_from_more_rank_is_named() -> None:
    (found,) = find_failure_modes(PLANTED["insufficient rank"]())
    assert found.symptom == "the last step in rank is still a gain for float32 and for NF4"
    assert found.evidence.startswith("float32, r = 4 is worse than")
    assert "NF4, r = 4 is worse than" in found.evidence


def test_each_precision_with_unused_rank_is_named_with_its_seeds() -> None:
    shares = {"float32": {0: 0.1, 1: 0.2}, "NF4": {0: 0.24, 1: 0.03}}
    (found,) = find_failure_modes(replace(planted.healthy(), utilization=shares))
    assert found.symptom.startswith("the updates of float32 and of NF4 at the largest rank")
    assert found.evidence == (
        "effective rank as a share of r, mean over layers; float32: 0.10 with seed 0, 0.20 with seed 1; NF4: 0.24 with "
        "seed 0, 0.03 with seed 1"
    )


def test_nothing_is_found_on_a_healthy_pair_or_without_data() -> None:
    assert find_failure_modes(planted.healthy()) == ()
    assert find_failure_modes(Evidence()) == ()
    assert len(PLANTED) == len(RULES)


NAN = Interval(float("nan"), float("nan"), float("nan"))


def test_a_rule_without_data_is_named() -> None:
    assert unchecked_failure_modes(planted.healthy()) == ()
    assert set(unchecked_failure_modes(Evidence())) == {*PLANTED}
    one_rank = replace(planted.diagnosis(), ranks=(8,))
    single = planted.results().configurations[2::3]
    ranks = find_rank_threshold(one_rank, replace(planted.results(), configurations=single))
    unknown = replace(planted.sensitivity(), effects=planted.sensitivity().effects[-3:])
    lacking = {
        "insufficient rank": {"ranks": ranks},
        "divergence beyond seed noise": {"similarity": replace(planted.similarity(), against_seeds=NAN)},
        "merge drift": {"merges": planted.merges(judged=False)},
        "sensitive layer": {"sensitivity": unknown},
        "unused rank": {"utilization": {}},
        "overfitting": {"validation_losses": {"float32": POINT, "NF4": POINT}},
    }
    for name, evidence in lacking.items():
        assert unchecked_failure_modes(replace(planted.healthy(), **evidence)) == (name,)  # type: ignore[arg-type]
    one = replace(planted.healthy(), utilization={"NF4": {0: 0.6}})  # and nothing is known of the other precision
    assert unchecked_failure_modes(one) == ("unused rank",)
    half = replace(planted.healthy(), validation_losses={"float32": planted.curves(), "NF4": POINT})
    assert unchecked_failure_modes(half) == ("overfitting",)


def ranks_of(*accuracies: float, examples: int = 600) -> RankThreshold:
    return find_rank_threshold(planted.diagnosis(), planted.results(accuracies=accuracies, examples=examples))


def unsure(measured: Sensitivity) -> Sensitivity:
    """Single modules whose divergences have intervals with 0."""
    wide = [
        replace(each, divergence=replace(each.divergence, low=-1.0)) if each.grouping is Grouping.MODULE else each
        for each in measured.effects
    ]
    return replace(measured, effects=tuple(wide))


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("insufficient rank", {"ranks": ranks_of(0.80, 0.905, 0.92, examples=200)}),
        (
            "divergence beyond seed noise",
            {"similarity": replace(planted.similarity(), against_seeds=Interval(0.0, -0.1, 0.1))},
        ),
        ("merge drift", {"merges": planted.merges(dequantized=0.98)}),
        ("sensitive layer", {"sensitivity": unsure(planted.sensitivity((0.3, 0.011, 0.01, 0.01, 0.01, 0.009)))}),
    ],
)
def test_a_rule_whose_data_show_neither_is_undecided(name: str, evidence: dict[str, object]) -> None:
    own = replace(planted.healthy(), **evidence)  # type: ignore[arg-type]
    assert find_failure_modes(own) == ()
    assert unchecked_failure_modes(own) == ()
    assert undecided_failure_modes(own) == (name,)


def test_what_is_found_or_ruled_out_is_not_undecided() -> None:
    assert undecided_failure_modes(planted.healthy()) == undecided_failure_modes(Evidence()) == ()
    for name, fault in PLANTED.items():
        assert name not in undecided_failure_modes(fault())


@pytest.mark.parametrize("rising", [{"float32": 5, "NF4": 0}, {"float32": 1, "NF4": 5}])
def test_a_precision_that_overfits_alone_is_found_and_named(rising: dict[str, int]) -> None:
    """Of ten runs of both, five and six would be found without their precision, or not at all beside more seeds."""
    (found,) = find_failure_modes(with_curves(**rising))
    bad = max(rising, key=lambda name: rising[name])
    assert found.symptom == f"the validation loss of {bad} rises before training ends"
    assert f"{bad}: 5 of 5 runs, of seed 0 from 0.6 at step 20 to 0.9 at the end" in found.evidence
    other = min(rising, key=lambda name: rising[name])
    assert f"{other}: {rising[other]} of 5 runs" in found.evidence
    more = {seed + 5: curve for seed, curve in planted.curves().items()}
    curves = with_curves(**rising).validation_losses
    unequal = {name: own if name == bad else own | more for name, own in curves.items()}  # type: ignore[operator]
    assert find_failure_modes(replace(planted.healthy(), validation_losses=unequal))


@pytest.mark.parametrize(
    "evidence",
    [
        {"merges": planted.merges(dequantized=0.9, judged=False)},  # noise over noise
        {"merges": planted.merges(dequantized=0.985)},
        {"merges": planted.merges(requantized=0.5)},  # rounds a small update away, as expected
        {"similarity": replace(planted.similarity(), against_seeds=Interval(0.1, -0.1, 0.3))},
        {"sensitivity": planted.sensitivity((0.00009, 1e-7, 1e-7, 1e-7, 1e-7, 1e-7))},  # which nobody sees
        {"sensitivity": planted.sensitivity((0.04, 0.03, 0.03, 0.02, 0.02, 0.02))},
        {"utilization": {"NF4": {0: 0.2, 1: 0.3}}},
        {"errors": planted.errors(pad_token_id=99)},
        {"errors": planted.errors(pad_token_id=-1)},
        {"validation_losses": {"float32": planted.curves(2), "NF4": planted.curves(2)}},
        {"validation_losses": {"float32": POINT, "NF4": POINT}},
    ],
    ids=lambda evidence: next(iter(evidence)),
)
def test_what_is_nearly_a_fault_is_none(evidence: dict[str, object]) -> None:
    assert find_failure_modes(replace(planted.healthy(), **evidence)) == ()  # type: ignore[arg-type]
