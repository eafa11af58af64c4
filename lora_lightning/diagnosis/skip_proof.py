"""Proves a list of modules to leave unquantized by training with it, and with random lists of equal bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_lightning.diagnosis.rank_threshold import PrecisionLoss
from lora_lightning.diagnosis.sensitivity import SkipChoice
from lora_lightning.diagnosis.specification import QUANTIZATION_OPTION, Diagnosis, SkipProof
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE, holm
from lora_lightning.statistics.paired import PairedDifference
from lora_lightning.statistics.pairing import common_seeds, compare
from lora_lightning.statistics.ratio import bought_back_share
from lora_lightning.statistics.study_results import ConfigurationResults, Metric
from lora_lightning.statistics.verdicts import shown_difference
from lora_lightning.studies.option_conflicts import parts_of
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.specification import Axis, Study

LISTS, SENSITIVE, RANDOM = "skip list", "sensitive modules", "random list"
SKIP_MODULES = "skip_modules"


@dataclass(frozen=True)
class RandomList:
    """A random list beside the chosen one.

    Attributes:
        name: Of its runs.
        more_bytes: What it takes more.
        mean: Mean of the metric, as shown.
        difference: The chosen list minus this one, in the metric's stored unit, larger is better.
        p_value: One-sided, of the chosen list not being better, with Holm's correction over all random lists; NaN if
            there is no test, such as with one seed.
    """

    name: str
    more_bytes: int
    mean: float
    difference: PairedDifference
    p_value: float


@dataclass(frozen=True)
class SkipFinding:
    """What training with the list shows.

    Attributes:
        modules: The list.
        bytes_share: What it adds to the memory of the quantized model's weights.
        bought_back: The share of the loss by quantization that it buys back, with its interval over seeds and examples.
        over_random: The list minus the mean of the random lists, in the metric's stored unit, larger is better; `None`
            if there is no other list of its bytes.
        p_value: One-sided, of not being better than random lists; NaN if there is no test, such as with one seed or
            after failed runs of the list.
        random: Each random list, the best first.
        rank: Of the list among all of them, 1 for the best.
        means: Mean of the metric by list, as shown, with both precisions, over the seeds that all of them have.
        proven: Whether enough is bought back, and more than by random lists.
        sentence: In words.
    """

    modules: tuple[str, ...]
    bytes_share: float
    bought_back: Interval
    over_random: PairedDifference | None
    p_value: float
    random: tuple[RandomList, ...]
    rank: int
    means: Mapping[str, float]
    proven: bool
    sentence: str


def reason_not_to_train(diagnosis: Diagnosis, choice: SkipChoice | None, loss: PrecisionLoss | None) -> str:
    """Says why no list is trained.

    Args:
        diagnosis: The diagnosis.
        choice: The list; `None` if sensitivity was not measured.
        loss: Both precisions at the compared rank; `None` if runs are missing.

    Returns:
        A sentence; empty if the list is to be trained.
    """
    if diagnosis.proof is None:
        return "No proof was asked for."
    if choice is None:
        return "The sensitivity of modules is not measured yet, so there is no list; run the diagnosis."
    if not choice.modules:
        return "No module that is sensitive fits into the budget of bytes, so there is no list to prove."
    if loss is None:
        return f"No seed has finished runs of both precisions at r = {diagnosis.rank}, so a loss is not known."
    return "" if loss.is_loss else loss.why_no_loss


def proof_study(
    diagnosis: Diagnosis, plan: StudyPlan, choice: SkipChoice, proof: SkipProof, skipped: Sequence[str]
) -> Study:
    """Makes the study that trains with each list.

    Args:
        diagnosis: The diagnosis.
        plan: The plan of its study, with the content of the base configs.
        choice: The list, and the random ones.
        proof: Its seeds.
        skipped: The modules that the quantized precision skips anyway.

    Returns:
        A study of lists at the compared rank.
    """
    options = plan.configuration(diagnosis.configuration(diagnosis.quantized, diagnosis.rank)).options
    lists = {SENSITIVE: choice.modules}
    lists |= {f"{RANDOM} {number}": modules for number, modules in enumerate(choice.random, start=1)}
    values = {name: with_skip_modules(options, [*skipped, *modules]) for name, modules in lists.items()}
    return replace(
        plan.study,
        name=f"{plan.study.name}-{SKIP_MODULES}",
        axes=(Axis(LISTS, values, is_named=True),),
        derived={},
        seeds=proof.seeds,
        further_seeds={},
        reference=SENSITIVE,
        costs=("trainable_parameters",),
    )


def with_skip_modules(options: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """Replaces the modules that a precision leaves unquantized.

    Args:
        options: Of `fit`, with `model.quantization` as a mapping or as dotted options.
        modules: The complete list.

    Returns:
        The options.
    """
    whole, single = parts_of(QUANTIZATION_OPTION), parts_of(f"{QUANTIZATION_OPTION}.{SKIP_MODULES}")
    for option, value in options.items():
        if parts_of(option) == whole:
            return {**options, option: {**value, SKIP_MODULES: [*modules]}}
    named = next((option for option in options if parts_of(option) == single), f"{QUANTIZATION_OPTION}.{SKIP_MODULES}")
    return {**options, named: [*modules]}


def judge_skips(
    full: ConfigurationResults,
    quantized: ConfigurationResults,
    lists: Sequence[ConfigurationResults],
    choice: SkipChoice,
    proof: SkipProof,
    metric: Metric,
) -> SkipFinding:
    """Judges the list by the runs.

    Args:
        full: Results without quantization, at the compared rank.
        quantized: Results with everything quantized.
        lists: Results with the list, then with each random list.
        choice: The list.
        proof: What it has to buy back, and for how many bytes.
        metric: The metric that decides.

    Returns:
        The finding.
    """
    seeds = seeds_of_proof(proof, full, quantized, *lists)
    full, quantized, *lists = (_of_seeds(each, seeds) for each in (full, quantized, *lists))
    chosen = lists[0]
    ratio = bought_back_share(full, quantized, chosen)
    over = compare(chosen, average(lists[1:]), metric) if lists[1:] else None
    p_value = over.p_value_above(0.0) if over is not None and _is_judged(over) else math.nan
    random = _random_lists(chosen, lists[1:], choice, metric)
    rank = 1 + sum(each.difference.interval.value <= 0 for each in random)
    enough = ratio.low >= proof.bought_back and choice.share <= proof.more_bytes
    better = p_value <= ERROR_RATE and rank == 1
    means = {each.name: metric.shown_value(each.mean_value) for each in (full, quantized, *lists) if each.values}
    sentence = f"Leaving {len(choice.modules)} modules unquantized takes {100 * choice.share:.3g} % more memory and "
    sentence += (
        f"buys back {ratio} of the loss by quantization. {_beside_random(random, rank, p_value, choice, metric)}"
    )
    if {*seeds} != {*proof.seeds}:
        named = ", ".join(map(str, seeds))
        sentence += f" It rests on {len(seeds)} of {len(proof.seeds)} seeds ({named}): the others lack a finished run."
    return SkipFinding(
        choice.modules, choice.share, ratio, over, p_value, random, rank, means, enough and better, sentence
    )


def seeds_of_proof(proof: SkipProof, *results: ConfigurationResults) -> list[int]:
    """The seeds of a proof that all configurations have; runs with other seeds are no part of it.

    Args:
        proof: Its seeds.
        results: Of both precisions and of all lists.
    """
    return [seed for seed in common_seeds(*results) if seed in proof.seeds]


def _of_seeds(results: ConfigurationResults, seeds: Sequence[int]) -> ConfigurationResults:
    """Results of these seeds alone: every number of the judgement is of the same ones."""
    outcomes = {seed: results.outcomes[seed] for seed in seeds if seed in results.outcomes}
    return replace(results, values={seed: results.values[seed] for seed in seeds}, outcomes=outcomes)


def _random_lists(
    chosen: ConfigurationResults, lists: Sequence[ConfigurationResults], choice: SkipChoice, metric: Metric
) -> tuple[RandomList, ...]:
    differences = [compare(chosen, each, metric) for each in lists]
    tested = iter(holm([each.p_value_above(0.0) for each in differences if _is_judged(each)]))
    p_values = [next(tested) if _is_judged(each) else math.nan for each in differences]
    found = [
        RandomList(each.name, more_bytes, metric.shown_value(each.mean_value), difference, p_value)
        for each, more_bytes, difference, p_value in zip(lists, choice.random_bytes, differences, p_values, strict=True)
    ]
    return tuple(sorted(found, key=lambda each: each.difference.interval.value))


def _is_judged(difference: PairedDifference) -> bool:
    """Whether the list can be proven better: of one with failed runs, those that are left may be the good ones."""
    return difference.is_tested and not difference.failures


def _beside_random(random: Sequence[RandomList], rank: int, p_value: float, choice: SkipChoice, metric: Metric) -> str:
    """How good the list is among random ones, and how far their bytes differ."""
    if not random:
        return "There is no other list of its bytes to compare it with."
    proof = "better than" if p_value <= ERROR_RATE and rank == 1 else "not proven better than"
    failures = random[0].difference.failures
    test = f"not tested{failures and f', since {failures}'}" if math.isnan(p_value) else f"one-sided p = {p_value:.3g}"
    sentence = f"It is number {rank} of {len(random) + 1} lists, and {proof} {len(random)} random ones (their mean: "
    sentence += f"{test}; the best one, {random[0].name}: "
    sentence += f"{shown_difference(random[0].difference, metric)}), "
    lacking = max(1 - each.more_bytes / choice.more_bytes for each in random)
    return sentence + ("which take the same bytes." if not lacking else f"which take up to {lacking:.1%} fewer bytes.")


def average(lists: Sequence[ConfigurationResults]) -> ConfigurationResults:
    """The mean of several configurations, seed by seed and example by example.

    Args:
        lists: At least one.

    Returns:
        Results of the seeds that all have.
    """
    seeds = common_seeds(*lists)
    outcomes = {
        seed: np.mean([each.outcomes[seed] for each in lists], axis=0)
        for seed in seeds
        if all(seed in each.outcomes for each in lists)
    }
    return ConfigurationResults(
        "random lists", {}, {seed: float(np.mean([each.values[seed] for each in lists])) for seed in seeds}, outcomes
    )
